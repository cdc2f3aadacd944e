//! `phalanx describe`: all that is known of an object, with its events.
//!
//! Pods, nodes, namespaces, Deployments, ReplicaSets, ConfigMaps and Secrets have a page of their own; anything else is told
//! field by field. The pages are pure functions of what was fetched and of the time.

mod node;
mod page;
mod pod;
mod workload;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::client::ApiClient;
use super::discovery::{Resource, Resources, with_type};
use super::error::{complain, print, warn};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global};

pub use pod::pod_template;

/// Tells all about objects, with their events.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx describe pod web-1
  phalanx describe node n1
  phalanx describe deploy -l app=web")]
pub struct DescribeArgs {
    /// TYPE [NAME...], or TYPE/NAME...
    #[arg(required = true, value_name = "RESOURCE")]
    pub what: Vec<String>,

    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,

    /// Without events
    #[arg(long)]
    pub no_events: bool,
}

/// Runs the command.
pub async fn run(args: DescribeArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let targets = Resources::discover(&client).await?.targets(&args.what)?;
    let mut pages = Vec::new();
    let mut failed = false;
    for target in &targets {
        let resource = &target.resource;
        let mut objects = Vec::new();
        if target.names.is_empty() {
            let namespace = (!args.all_namespaces).then_some(client.namespace.as_str());
            let path = format!("{}{}", resource.list_path(namespace), query(&[("labelSelector", &args.selector)]));
            let list = client.get(&path).await?;
            objects.extend(text::list_at(&list, "/items").iter().map(|o| with_type(o.clone(), resource)));
        }
        for name in &target.names {
            match client.get(&resource.path(&client.namespace, name)).await {
                Ok(object) => objects.push(object),
                Err(error @ CliError::Server { .. }) => {
                    progress.suspend(|| complain(&error));
                    failed = true;
                }
                Err(error) => return Err(error),
            }
        }
        for object in objects {
            pages.push(one(&client, resource, &object, !args.no_events).await?);
        }
    }
    drop(progress);
    if pages.is_empty() && !failed {
        warn("No resources found");
    }
    print(&pages.join("\n\n"))?;
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

async fn one(client: &ApiClient, resource: &Resource, object: &Value, with_events: bool) -> Result<String, CliError> {
    let now = Timestamp::now();
    let namespaced = |plural: &str, group: &str| {
        let base = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        format!("{base}/namespaces/{}/{plural}", text::escape(text::namespace(object)))
    };
    let mut page = match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => pod::page(object),
        ("", "Node") => {
            let fields = format!("spec.nodeName={}", text::name(object));
            let pods = client.get(&format!("/api/v1/pods{}", query(&[("fieldSelector", &fields)]))).await?;
            let lease =
                format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", text::name(object));
            let lease = client.find(&lease).await?;
            node::page(object, text::list_at(&pods, "/items"), lease.as_ref(), now)
        }
        ("apps", "Deployment") => {
            let sets = client.get(&namespaced("replicasets", "apps")).await?;
            workload::deployment(object, text::list_at(&sets, "/items"))
        }
        ("apps", "ReplicaSet") => {
            let pods = client.get(&namespaced("pods", "")).await?;
            workload::replica_set(object, text::list_at(&pods, "/items"))
        }
        ("", "ConfigMap") => page::config_map(object),
        ("", "Secret") => page::secret(object),
        ("", "Namespace") => page::namespace(object),
        _ => page::generic(object),
    };
    if with_events && resource.kind != "Event" {
        let fields = format!(
            "involvedObject.kind={},involvedObject.name={},involvedObject.uid={}",
            resource.kind,
            text::name(object),
            // Events of a node carry its name as uid, or the uid, by who wrote them.
            if resource.kind == "Node" { "" } else { text::str_at(object, "/metadata/uid") },
        );
        let fields = fields.trim_end_matches(",involvedObject.uid=");
        let path = match text::namespace(object) {
            "" => "/api/v1/events".to_owned(),
            namespace => format!("/api/v1/namespaces/{}/events", text::escape(namespace)),
        };
        let list = client.get(&format!("{path}{}", query(&[("fieldSelector", fields)]))).await?;
        page.push_str(&page::events(text::list_at(&list, "/items"), now));
    }
    Ok(page)
}
