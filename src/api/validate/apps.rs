//! Rules of Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::{Causes, meta, pod, text};
use crate::api::{LabelSelector, Object};

pub(super) fn deployment(obj: &Object, causes: &mut Causes) {
    let spec = &obj["spec"];
    causes.not_negative("spec.replicas", &spec["replicas"]);
    selector_and_template(spec, causes);
    strategy(&spec["strategy"], causes);
    causes.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
    causes.not_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
    let deadline = &spec["progressDeadlineSeconds"];
    causes.not_negative("spec.progressDeadlineSeconds", deadline);
    if deadline.as_i64().is_some_and(|n| n <= spec["minReadySeconds"].as_i64().unwrap_or(0)) {
        causes.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
}

pub(super) fn replica_set(obj: &Object, causes: &mut Causes) {
    let spec = &obj["spec"];
    causes.not_negative("spec.replicas", &spec["replicas"]);
    causes.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
    selector_and_template(spec, causes);
}

pub(super) fn selector_update(old: &Object, new: &Object, causes: &mut Causes) {
    let (before, after) = (&old["spec"]["selector"], &new["spec"]["selector"]);
    if before != after {
        causes.invalid("spec.selector", after, "field is immutable");
    }
}

fn selector_and_template(spec: &Value, causes: &mut Causes) {
    let selector = &spec["selector"];
    let empty = |field: &str| selector[field].as_object().is_none_or(|m| m.is_empty());
    let no_expressions = selector["matchExpressions"].as_array().is_none_or(|list| list.is_empty());
    if selector.is_null() {
        causes.required("spec.selector", "");
    } else {
        meta::label_selector(selector, "spec.selector", causes);
        if empty("matchLabels") && no_expressions {
            causes.invalid("spec.selector", selector, "empty selector is invalid for deployment");
        }
    }
    let template = &spec["template"];
    let labels = template["metadata"]["labels"].as_object();
    let matches = LabelSelector::from_object(selector).is_ok_and(|selector| selector.matches(labels));
    if !matches {
        let shown = labels.map_or(json!({}), |labels| Value::Object(labels.clone()));
        causes.invalid("spec.template.metadata.labels", &shown, "`selector` does not match template `labels`");
    }
    meta::labels(&template["metadata"]["labels"], "spec.template.labels", causes);
    meta::annotations(&template["metadata"]["annotations"], "spec.template.annotations", causes);
    pod::spec(&template["spec"], "spec.template.spec", causes);
    let policy = text(&template["spec"], "restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        causes.not_supported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        causes.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}

fn strategy(strategy: &Value, causes: &mut Causes) {
    let path = "spec.strategy";
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => {
            causes
                .forbidden(format!("{path}.rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'");
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let path = format!("{path}.rollingUpdate");
            let unavailable = amount(&rolling["maxUnavailable"], &format!("{path}.maxUnavailable"), causes);
            let surge = amount(&rolling["maxSurge"], &format!("{path}.maxSurge"), causes);
            if let (Some(0), Some(0)) = (unavailable, surge) {
                causes.invalid(
                    format!("{path}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|percent| percent > 100) {
                causes.invalid(
                    format!("{path}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "must not be greater than 100%",
                );
            }
        }
        other => causes.not_supported(format!("{path}.type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// A number of pods or a percentage; its number, if it is one.
fn amount(value: &Value, path: &str, causes: &mut Causes) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        causes.not_negative(path, value);
        return Some(number);
    }
    let word = value.as_str()?;
    let percent = word
        .strip_suffix('%')
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    if percent.is_none() {
        causes.invalid(path, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
    }
    percent
}
