//! KubeVela with `authentication.enabled`: what an Application does is done as whoever wrote it, and the gateway asks clusters as
//! whoever asks it.

use std::path::Path;

use serde_json::{Value, json};
use xregion_lab::Lab;
use xregion_lab::pki::Validity;
use xregion_lab::site::{self, GATEWAY, NAMESPACE};

use super::fixture::{bring, eventually, fresh, is_there, joined, properties, through_gateway};

const CORE: &str = "kubevela-vela-core";
/// What the chart's `authentication.enabled` and `authorization.definitionValidationEnabled` change: feature gates, and further arguments.
/// (The first also takes rights from vela-core that it does not need then.)
const ARGUMENTS: [(&str, &[&str], &[&str]); 2] = [
    (CORE, &["AuthenticateApplication", "ValidateDefinitionPermissions"], &["--authentication-with-user"]),
    (GATEWAY, &["ClientIdentityPenetration"], &[]),
];

/// Sets the arguments of both, and gives what they were before.
fn set_arguments(lab: &Lab, change: impl Fn(usize, Vec<String>) -> Vec<String>) -> [Vec<String>; 2] {
    let mut number = 0;
    ARGUMENTS.map(|(name, ..)| {
        let path = "jsonpath={.spec.template.spec.containers[0].args}";
        let args = lab.kubectl("hub", &["get", "deployment", name, "-n", NAMESPACE, "-o", path]).unwrap();
        let before: Vec<String> = serde_json::from_str(&args).unwrap();
        let after = change(number, before.clone());
        let patch = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": after}]).to_string();
        lab.kubectl("hub", &["patch", "deployment", name, "-n", NAMESPACE, "--type=json", "-p", &patch]).unwrap();
        lab.kubectl("hub", &["rollout", "status", "deployment", name, "-n", NAMESPACE, "--timeout=180s"]).unwrap();
        number += 1;
        before
    })
}

fn authenticating(number: usize, mut args: Vec<String>) -> Vec<String> {
    let (_, gates, more) = ARGUMENTS[number];
    for gate in gates {
        let (off, on) = (format!("{gate}=false"), format!("{gate}=true"));
        let arg = args.iter_mut().find(|arg| arg.contains(&off)).unwrap();
        *arg = arg.replace(&off, &on);
    }
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    args
}

/// What docs/security.md says that an author of a membership needs then.
fn rights() -> Value {
    let metadata = |name: &str, namespace: &str| json!({"name": name, "namespace": namespace});
    let binding = |name: &str, namespace: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata(name, namespace),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "author"}],
        })
    };
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata("xregion-author", "default"),
            "rules": [{"apiGroups": ["core.oam.dev"], "resources": ["applications"], "verbs": ["*"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata("xregion-joins", NAMESPACE),
            "rules": [{
                "apiGroups": ["core.oam.dev"], "resources": ["workflowstepdefinitions"], "resourceNames": ["xregion-join"], "verbs": ["get"],
            }],
        },
        binding("xregion-author", "default", "xregion-author"),
        binding("xregion-author", NAMESPACE, "xregion-author"),
        binding("xregion-joins", NAMESPACE, "xregion-joins"),
    ]})
}

fn kubeconfig(lab: &Lab, file: &Path) {
    let pair = lab.authority("hub").unwrap().client("author", None, Validity::Now).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let part = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (part("c.pem", &pair.certificate), part("k.pem", &pair.key));
    std::fs::copy(lab.kubeconfig("hub").unwrap(), file).unwrap();
    let config = format!("--kubeconfig={}", file.display());
    let set = |args: &[&str]| lab.kubectl("hub", &[&["config", &config], args].concat()).unwrap();
    let (certificate, key) = (format!("--client-certificate={certificate}"), format!("--client-key={key}"));
    set(&["set-credentials", "author", &certificate, &key, "--embed-certs"]);
    set(&["set-context", "--current", "--user=author"]);
}

#[test]
#[ignore = "restarts KubeVela twice: make test-faults"]
fn a_membership_of_an_author_with_few_rights_is_joined_and_left() {
    let lab = joined();
    let before = set_arguments(lab, authenticating);
    let checked = std::panic::catch_unwind(|| {
        eventually("the gateway", || through_gateway(lab, "proxy-west", "/version"));
        let spec = fresh(128);
        bring(&spec);
        lab.apply("hub", &rights()).unwrap();
        let config = tempfile::NamedTempFile::new().unwrap();
        kubeconfig(lab, config.path());
        let up = |application: Value| {
            let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
            std::fs::write(file.path(), format!("# Application\n{application}"))?;
            let mut up = lab.command("hub", &["vela", "up", "-f", file.path().to_str().unwrap()])?;
            let output = up.env("KUBECONFIG", config.path()).output()?;
            Ok::<_, anyhow::Error>((output.status.success(), format!("{output:?}")))
        };
        eventually("vela up by the author", || {
            let join = site::membership("of-author", &properties(&spec.name, "proxy-east", "fresh", json!({})));
            let (done, said) = up(join)?;
            anyhow::ensure!(done, "{said}");
            Ok(())
        });
        let (done, said) = up(super::leaves::leaving("leave-of-author", &spec.name, &json!({}))).unwrap();
        assert!(!done && said.contains("cannot get") && said.contains("xregion-leave"), "{said}");
        let status = lab.await_running("of-author").unwrap();
        assert!(site::message(&status).contains("joined: "), "{}", site::message(&status));
        is_there(&spec.name);
        lab.vela_delete("of-author").unwrap();
        let left = super::laptop::run(&["leave", &spec.name]);
        assert!(left.status.success(), "{left:?}");
        super::leaves::is_gone(&spec.name);
        lab.stop_cluster(&spec.name).unwrap();
    });
    set_arguments(lab, |number, _| before[number].clone());
    checked.unwrap();
    eventually("the gateway", || through_gateway(lab, "business-a", "/version"));
}
