//! `phalanx rollout`: shows and steers the rollout of Deployments, worded as kubectl words it.

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::{ApiClient, JSON, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH};
use super::columns::align;
use super::describe::pod_template;
use super::discovery::{Resource, Resources, select};
use super::error::{print, println};
use super::logs::selector_text;
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global};

/// Kubernetes' annotation of a ReplicaSet's and a Deployment's revision.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that belong to one object and are not rolled back with a template (kubectl's list).
const ANNOTATIONS_TO_SKIP: [&str; 6] = [
    crate::api::patch::three_way::LAST_APPLIED,
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

/// Shows and steers the rollout of a Deployment.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx rollout status deploy/web              wait until it is done
  phalanx rollout restart deploy/web             new pods, a few at a time
  phalanx rollout history deploy/web
  phalanx rollout undo deploy/web --to-revision 2")]
pub struct RolloutArgs {
    /// What to do
    #[command(subcommand)]
    pub command: RolloutCommand,
}

/// What to do with a rollout.
#[derive(Subcommand, Clone, Debug)]
pub enum RolloutCommand {
    /// Follows the rollout until it is done or has failed
    Status {
        #[command(flatten)]
        what: What,
        /// Only say how it stands
        #[arg(long)]
        no_wait: bool,
        /// How long to wait, in seconds; 0 is for ever
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        timeout: u64,
    },
    /// Lists the revisions, or shows one
    History {
        #[command(flatten)]
        what: What,
        /// Show this one
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
    },
    /// Goes back to an earlier revision
    Undo {
        #[command(flatten)]
        what: What,
        /// Which one [default: the one before]
        #[arg(long, value_name = "N")]
        to_revision: Option<u64>,
    },
    /// Replaces all pods, a few at a time
    Restart {
        #[command(flatten)]
        what: What,
    },
    /// Changes start no rollout until it is resumed
    Pause {
        #[command(flatten)]
        what: What,
    },
    /// Ends a pause
    Resume {
        #[command(flatten)]
        what: What,
    },
}

/// Which Deployments.
#[derive(Args, Clone, Debug)]
pub struct What {
    /// TYPE NAME..., or TYPE/NAME...
    #[arg(required = true, value_name = "RESOURCE")]
    pub words: Vec<String>,

    /// All with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
}

/// Runs the command.
pub async fn run(args: RolloutArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let what = match &args.command {
        RolloutCommand::Status { what, .. }
        | RolloutCommand::History { what, .. }
        | RolloutCommand::Undo { what, .. }
        | RolloutCommand::Restart { what }
        | RolloutCommand::Pause { what }
        | RolloutCommand::Resume { what } => what,
    };
    let targets = Resources::discover(&client).await?.targets(&what.words)?;
    let found = select(&client, &targets, &what.selector, "", false).await?;
    for (resource, object) in found {
        if resource.kind != "Deployment" {
            return Err(CliError::new(format!(
                "{} has no rollout that this program knows; Deployments have",
                resource.display(text::name(&object))
            )));
        }
        let path = resource.path(&client.namespace, text::name(&object));
        let done = |verb: &str| format!("{} {verb}", resource.display(text::name(&object)));
        match &args.command {
            RolloutCommand::Status { no_wait, timeout, .. } => {
                let follow = status(&client, &resource, object.clone(), *no_wait, &progress);
                match *timeout {
                    0 => follow.await?,
                    s => tokio::time::timeout(Duration::from_secs(s), follow).await.unwrap_or_else(|_| {
                        Err(CliError::new(format!("timed out after {s} s waiting for the rollout")))
                    })?,
                }
            }
            RolloutCommand::History { revision, .. } => {
                let text = history(&client, &resource, &object, *revision, global).await?;
                progress.suspend(|| print(&text))?;
            }
            RolloutCommand::Undo { to_revision, .. } => {
                let line = undo(&client, &path, &object, *to_revision).await?;
                progress.suspend(|| println(&done(line)))?;
            }
            RolloutCommand::Restart { .. } => {
                if paused(&object) {
                    return Err(CliError::new(format!(
                        "{} is paused; resume it first (phalanx rollout resume)",
                        resource.display(text::name(&object))
                    )));
                }
                // One second is Kubernetes' resolution here: two restarts within it are one.
                let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}});
                client.patch(&path, STRATEGIC_PATCH, &patch).await?;
                progress.suspend(|| println(&done("restarted")))?;
            }
            RolloutCommand::Pause { .. } => {
                if paused(&object) {
                    return Err(CliError::new(done("is already paused")));
                }
                client.patch(&path, MERGE_PATCH, &json!({"spec": {"paused": true}})).await?;
                progress.suspend(|| println(&done("paused")))?;
            }
            RolloutCommand::Resume { .. } => {
                if !paused(&object) {
                    return Err(CliError::new(done("is not paused")));
                }
                client.patch(&path, MERGE_PATCH, &json!({"spec": {"paused": null}})).await?;
                progress.suspend(|| println(&done("resumed")))?;
            }
        }
    }
    Ok(())
}

fn paused(deployment: &Value) -> bool {
    deployment["spec"]["paused"].as_bool().unwrap_or(false)
}

/// How a rollout stands (k8s.io/kubectl/pkg/polymorphichelpers, `DeploymentStatusViewer`): what to say, and whether it
/// is done. A rollout that has made no progress within its deadline is an error.
pub fn deployment_status(deployment: &Value) -> Result<(String, bool), String> {
    let name = text::name(deployment);
    if text::int_at(deployment, "/metadata/generation") > text::int_at(deployment, "/status/observedGeneration") {
        return Ok(("Waiting for deployment spec update to be observed...".into(), false));
    }
    let exceeded = text::list_at(deployment, "/status/conditions")
        .iter()
        .any(|c| text::str_at(c, "/type") == "Progressing" && text::str_at(c, "/reason") == "ProgressDeadlineExceeded");
    if exceeded {
        return Err(format!("deployment \"{name}\" exceeded its progress deadline"));
    }
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let all = text::int_at(deployment, "/status/replicas");
    let updated = text::int_at(deployment, "/status/updatedReplicas");
    let available = text::int_at(deployment, "/status/availableReplicas");
    let waiting = |what: String| Ok((format!("Waiting for deployment \"{name}\" rollout to finish: {what}..."), false));
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if all > updated {
        return waiting(format!("{} old replicas are pending termination", all - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((format!("deployment \"{name}\" successfully rolled out"), true))
}

async fn status(
    client: &ApiClient,
    resource: &Resource,
    mut object: Value,
    no_wait: bool,
    progress: &Progress,
) -> Result<(), CliError> {
    let name = text::name(&object).to_owned();
    let mut said = String::new();
    loop {
        if say(&object, &mut said, progress)? || no_wait {
            return Ok(());
        }
        let path = format!(
            "{}{}",
            resource.list_path(Some(&client.namespace)),
            query(&[
                ("watch", "1"),
                ("fieldSelector", &format!("metadata.name={name}")),
                ("resourceVersion", text::str_at(&object, "/metadata/resourceVersion")),
            ])
        );
        match client.watch(&path, JSON).await {
            Ok(mut events) => {
                // Ends when the server ends it, or with a version that is too old: then look again.
                while let Some(Ok((kind, changed))) = events.next().await {
                    if kind == "DELETED" {
                        return Err(CliError::new("object has been deleted"));
                    }
                    object = changed;
                    if say(&object, &mut said, progress)? || no_wait {
                        return Ok(());
                    }
                }
            }
            Err(CliError::Server { code: 410, .. }) => {}
            Err(error) => return Err(error),
        }
        object = client.get(&resource.path(&client.namespace, &name)).await?;
    }
}

/// Says how the rollout stands, if that is new; true when it is done.
fn say(deployment: &Value, said: &mut String, progress: &Progress) -> Result<bool, CliError> {
    let (line, done) = deployment_status(deployment).map_err(CliError::new)?;
    if line != *said {
        progress.suspend(|| println(&line))?;
        *said = line;
    }
    Ok(done)
}

/// The ReplicaSets of a Deployment by revision, oldest first.
async fn revisions(client: &ApiClient, deployment: &Value) -> Result<Vec<(u64, Value)>, CliError> {
    let selector = selector_text(&deployment["spec"]["selector"]).unwrap_or_default();
    let path = format!(
        "/apis/apps/v1/namespaces/{}/replicasets{}",
        text::escape(text::namespace(deployment)),
        query(&[("labelSelector", &selector)])
    );
    let list = client.get(&path).await?;
    Ok(owned_revisions(text::list_at(&list, "/items"), text::str_at(deployment, "/metadata/uid")))
}

fn owned_revisions(sets: &[Value], uid: &str) -> Vec<(u64, Value)> {
    let mut revisions: Vec<(u64, Value)> = sets
        .iter()
        .filter(|rs| text::list_at(rs, "/metadata/ownerReferences").iter().any(|o| text::str_at(o, "/uid") == uid))
        .map(|rs| (revision(rs), rs.clone()))
        .collect();
    revisions.sort_by_key(|(n, _)| *n);
    revisions
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|n| n.parse().ok()).unwrap_or_default()
}

async fn history(
    client: &ApiClient,
    resource: &Resource,
    deployment: &Value,
    wanted: Option<u64>,
    global: &Global,
) -> Result<String, CliError> {
    let revisions = revisions(client, deployment).await?;
    let display = resource.display(text::name(deployment));
    if let Some(wanted) = wanted {
        let (_, set) = revisions
            .iter()
            .find(|(n, _)| *n == wanted)
            .ok_or_else(|| CliError::new(no_revision(&revisions, wanted)))?;
        return Ok(format!("{display} with revision #{wanted}\n{}\n", pod_template(&set["spec"]["template"])));
    }
    let cause = |rs: &Value| {
        let cause = &rs["metadata"]["annotations"][CHANGE_CAUSE];
        text::scalar(cause)
    };
    if global.json() {
        let list: Vec<Value> = revisions
            .iter()
            .map(|(n, rs)| json!({"revision": n, "replicaSet": text::name(rs), "changeCause": rs["metadata"]["annotations"][CHANGE_CAUSE]}))
            .collect();
        return text::json(&json!(list));
    }
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    rows.extend(revisions.iter().map(|(n, rs)| vec![n.to_string(), cause(rs)]));
    Ok(format!("{display} \n{}\n", align(&rows)))
}

async fn undo(
    client: &ApiClient,
    path: &str,
    deployment: &Value,
    wanted: Option<u64>,
) -> Result<&'static str, CliError> {
    if paused(deployment) {
        return Err(CliError::new(format!(
            "deployment \"{}\" is paused; resume it first (phalanx rollout resume)",
            text::name(deployment)
        )));
    }
    let revisions = revisions(client, deployment).await?;
    let set = revision_to_undo(&revisions, wanted).map_err(CliError::new)?;
    let template = template_of(&set);
    if template == template_of(deployment) {
        return Ok("skipped rollback (current template already matches)");
    }
    let mut annotations = serde_json::Map::new();
    let copy = |from: &Value, into: &mut serde_json::Map<String, Value>, skipped: bool| {
        for (key, value) in from["metadata"]["annotations"].as_object().into_iter().flatten() {
            if ANNOTATIONS_TO_SKIP.contains(&key.as_str()) == skipped {
                into.insert(key.clone(), value.clone());
            }
        }
    };
    copy(deployment, &mut annotations, true);
    copy(&set, &mut annotations, false);
    let patch = json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
    ]);
    client.patch(path, JSON_PATCH, &patch).await?;
    Ok("rolled back")
}

fn no_revision(revisions: &[(u64, Value)], wanted: u64) -> String {
    let kept: Vec<String> = revisions.iter().map(|(n, _)| n.to_string()).collect();
    format!("unable to find specified revision {wanted} in history; it has {}", kept.join(", "))
}

/// The revision asked for, else the one before the last.
fn revision_to_undo(revisions: &[(u64, Value)], wanted: Option<u64>) -> Result<Value, String> {
    let found = match wanted.filter(|n| *n > 0) {
        Some(n) => revisions.iter().find(|(r, _)| *r == n).ok_or_else(|| no_revision(revisions, n))?,
        None if revisions.len() < 2 => {
            return Err("no rollout history found: there is no revision to go back to".into());
        }
        None => &revisions[revisions.len() - 2],
    };
    Ok(found.1.clone())
}

/// The pod template without what the ReplicaSet's controller added.
fn template_of(object: &Value) -> Value {
    let mut template = object["spec"]["template"].clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(updated: i64, all: i64, available: i64) -> Value {
        json!({"metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 2}, "status": {
            "observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available}})
    }

    #[test]
    fn a_rollout_is_told_step_by_step() {
        let say = |d: Value| deployment_status(&d).expect("no deadline");
        let mut unseen = deployment(2, 2, 2);
        unseen["status"]["observedGeneration"] = 1.into();
        assert_eq!(say(unseen), ("Waiting for deployment spec update to be observed...".into(), false));
        let wait = |what: &str| (format!("Waiting for deployment \"web\" rollout to finish: {what}..."), false);
        assert_eq!(say(deployment(1, 3, 2)), wait("1 out of 2 new replicas have been updated"));
        assert_eq!(say(deployment(2, 3, 2)), wait("1 old replicas are pending termination"));
        assert_eq!(say(deployment(2, 2, 1)), wait("1 of 2 updated replicas are available"));
        assert_eq!(say(deployment(2, 2, 2)), ("deployment \"web\" successfully rolled out".into(), true));
    }

    #[test]
    fn a_rollout_past_its_deadline_is_an_error() {
        let mut d = deployment(1, 2, 1);
        d["status"]["conditions"] = json!([{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]);
        assert!(deployment_status(&d).expect_err("late").contains("exceeded its progress deadline"));
    }

    fn set(n: u64, uid: &str) -> Value {
        json!({"metadata": {"annotations": {REVISION: n.to_string()}, "ownerReferences": [{"uid": uid}]}})
    }

    #[test]
    fn undo_takes_the_revision_before_the_last_of_its_own() {
        let sets = [set(10, "u"), set(2, "u"), set(9, "u"), set(11, "other")];
        let revisions = owned_revisions(&sets, "u");
        assert_eq!(revisions.iter().map(|r| r.0).collect::<Vec<_>>(), [2, 9, 10]);
        assert_eq!(revision(&revision_to_undo(&revisions, None).expect("before")), 9);
        assert_eq!(revision(&revision_to_undo(&revisions, Some(2)).expect("that")), 2);
        assert!(revision_to_undo(&revisions, Some(3)).is_err());
        assert!(revision_to_undo(&revisions[..1], None).is_err());
    }

    #[test]
    fn templates_are_compared_without_the_hash() {
        let template =
            |hash: &str| json!({"spec": {"template": {"metadata": {"labels": {"a": "b", TEMPLATE_HASH: hash}}}}});
        assert_eq!(template_of(&template("x")), template_of(&template("y")));
    }
}
