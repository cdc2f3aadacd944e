use super::*;

fn deployment(image: &str) -> Value {
    json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [
        {"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}}}})
}

/// As the server completes it.
fn defaulted(image: &str) -> Value {
    json!({"metadata": {"uid": "u"}, "spec": {"replicas": 2, "revisionHistoryLimit": 10, "template": {"spec": {
        "restartPolicy": "Always", "containers": [{"name": "c", "image": image, "imagePullPolicy": "Always",
            "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}, "status": {"replicas": 2}})
}

#[test]
fn what_the_server_added_is_no_difference() {
    let wanted = deployment("nginx:1");
    assert_eq!(strategic(Some(&wanted), &wanted, &defaulted("nginx:1")), None);
}

#[test]
fn a_changed_field_of_a_list_element_is_sent_with_its_key() {
    let patch = strategic(Some(&deployment("nginx:1")), &deployment("nginx:2"), &defaulted("nginx:1"));
    assert_eq!(
        patch,
        Some(json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "c"}],
            "containers": [{"name": "c", "image": "nginx:2"}]}}}}))
    );
}

#[test]
fn what_is_no_longer_wanted_is_deleted_and_what_others_own_stays() {
    let last = json!({"data": {"a": "1", "b": "2"}});
    let wanted = json!({"data": {"a": "1"}});
    let live = json!({"data": {"a": "1", "b": "2", "others": "3"}});
    assert_eq!(strategic(Some(&last), &wanted, &live), Some(json!({"data": {"b": null}})));
    assert_eq!(merge(Some(&last), &wanted, &live), Some(json!({"data": {"b": null}})));
    let gone = json!({"data": {"a": "1"}});
    assert_eq!(strategic(Some(&last), &wanted, &gone), None, "what is gone already needs no deletion");
}

#[test]
fn a_value_that_someone_else_changed_is_set_back() {
    let wanted = json!({"spec": {"replicas": 2}});
    let live = json!({"spec": {"replicas": 5}});
    assert_eq!(strategic(Some(&wanted), &wanted, &live), Some(wanted));
}

#[test]
fn a_removed_list_element_is_deleted_by_key_and_a_foreign_one_stays() {
    let c = |names: &[&str]| json!({"containers": names.iter().map(|n| json!({"name": n, "image": "i"})).collect::<Vec<_>>()});
    let patch = strategic(Some(&c(&["a", "b"])), &c(&["a"]), &c(&["a", "b", "sidecar"]));
    assert_eq!(
        patch,
        Some(json!({"$setElementOrder/containers": [{"name": "a"}],
            "containers": [{"$patch": "delete", "name": "b"}]}))
    );
}

#[test]
fn a_new_list_element_is_sent_whole_and_order_is_kept() {
    let wanted = json!({"containers": [{"name": "b", "image": "i"}, {"name": "a", "image": "i"}]});
    let live = json!({"containers": [{"name": "a", "image": "i"}]});
    assert_eq!(
        strategic(None, &wanted, &live),
        Some(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "b", "image": "i"}]}))
    );
    let turned = json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]});
    assert_eq!(
        strategic(None, &wanted, &turned),
        Some(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})),
        "a new order alone is a change"
    );
}

#[test]
fn ports_of_containers_and_of_services_have_different_keys() {
    let last = json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}});
    let wanted = json!({"spec": {"ports": [{"port": 80}]}});
    let live = json!({"spec": {"ports": [{"port": 80, "nodePort": 3}, {"port": 81, "nodePort": 4}]}});
    assert_eq!(
        strategic(Some(&last), &wanted, &live),
        Some(json!({"spec": {"$setElementOrder/ports": [{"port": 80}], "ports": [{"$patch": "delete", "port": 81}]}}))
    );
}

#[test]
fn lists_without_keys_are_replaced_whole() {
    let wanted = json!({"args": ["a", "b"]});
    let live = json!({"args": ["a"]});
    assert_eq!(strategic(None, &wanted, &live), Some(wanted.clone()));
    assert_eq!(merge(None, &wanted, &live), Some(wanted));
    let wanted = deployment("nginx:2");
    let patch = merge(None, &wanted, &defaulted("nginx:1")).expect("changed");
    assert_eq!(patch["spec"]["template"]["spec"]["containers"], wanted["spec"]["template"]["spec"]["containers"]);
}

#[test]
fn finalizers_are_a_set() {
    let f = |names: &[&str]| json!({"metadata": {"finalizers": names}});
    assert_eq!(
        strategic(Some(&f(&["a", "b"])), &f(&["b", "c"]), &f(&["a", "b", "x"])),
        Some(json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}))
    );
}

#[test]
fn an_explicit_null_deletes_what_is_there_only() {
    let wanted = json!({"spec": {"a": null, "b": null}});
    assert_eq!(strategic(None, &wanted, &json!({"spec": {"a": 1}})), Some(json!({"spec": {"a": null}})));
    assert_eq!(strategic(None, &wanted, &json!({"spec": {}})), None);
}

#[test]
fn last_applied_is_kubectls_and_never_nests() {
    let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "1"}});
    let once = with_last_applied(&object);
    let text = once["metadata"]["annotations"][LAST_APPLIED].as_str().expect("set").to_owned();
    assert_eq!(
        text,
        "{\"apiVersion\":\"v1\",\"data\":{\"x\":\"1\"},\"kind\":\"ConfigMap\",\"metadata\":{\"annotations\":{},\"name\":\"a\"}}\n"
    );
    let twice = with_last_applied(&once);
    assert_eq!(twice["metadata"]["annotations"][LAST_APPLIED].as_str(), Some(text.as_str()));
    assert_eq!(last_applied(&once), serde_json::from_str(&text).ok());
    assert_eq!(last_applied(&object), None);
}
