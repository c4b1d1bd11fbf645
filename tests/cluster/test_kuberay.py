"""Every overlay of cluster/kuberay holds schema, operator's rules and ours, and can break them."""

import shutil
import subprocess

import pytest
import yaml
from documents import ABSENT, KUBERAY, OVERLAYS, broken, rendered
from kuberay_rules import problems

HEAD = "spec/headGroupSpec/template/spec"
GROUP = "spec/workerGroupSpecs/0"
WORKER = f"{GROUP}/template/spec"


def documents(overlay):
    return rendered(KUBERAY / "overlays" / overlay)


def one(overlay, kind, name=None):
    (found,) = [
        document
        for document in documents(overlay)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return found


def test_the_overlays_are_those_that_the_readme_tells_of():
    assert OVERLAYS == ["cpu-trial", "gcs-ft", "gpu-elastic", "kueue", "rayjob"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_as_it_should_be(overlay):
    found = {document["metadata"]["name"]: problems(document) for document in documents(overlay)}
    assert not any(found.values()), found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl to compare with")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_reader_here_renders_as_kubectl_does(overlay):
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ordered(found):
        return sorted(found, key=lambda d: (d["kind"], d["metadata"]["name"]))

    assert ordered(yaml.safe_load_all(printed)) == ordered(documents(overlay))


def test_every_file_of_the_folder_is_used_by_an_overlay():
    named = set()
    for folder in [KUBERAY / "base", *(KUBERAY / "overlays").iterdir()]:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named |= {(folder / name).resolve() for name in kustomization["resources"]}
        named |= {(folder / patch["path"]).resolve() for patch in kustomization.get("patches", [])}
    files = {p for p in KUBERAY.rglob("*.yaml") if p.name != "kustomization.yaml"}
    assert files == {path for path in named if path.is_file()}


def test_no_secret_stands_in_a_file():
    assert all(d["kind"] != "Secret" for overlay in OVERLAYS for d in documents(overlay))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("spec/headGroupSpecs", {}, "headGroupSpecs"),
        ("spec/enableInTreeAutoscaling", "yes", "is not of type"),
        (f"{GROUP}/groupName", 7, "is not of type"),
        (f"{GROUP}/rayStartParams/num-cpus", 4, "is not of type"),
        (f"{WORKER}/containers/0/resourcez", {}, "resourcez"),
        (f"{WORKER}/volumes/4/emptyDir/sizeLimit", "4 gigabytes", "does not match"),
        ("metadata/name", "Terrafm_1", "cannot have the name"),
        ("spec/rayVersion", "2.51.0", "2.52"),
        ("spec/authOptions", ABSENT, "no token"),
        ("spec/authOptions/secretName", ABSENT, "of its own"),
        (f"{HEAD}/restartPolicy", "Always", "restartPolicy Never"),
        (f"{WORKER}/restartPolicy", "OnFailure", "restartPolicy Never"),
        ("spec/headGroupSpec/resources", {"CPU": "1"}, "two places"),
        (f"{GROUP}/rayStartParams/num-cpu", "4", "has no --num-cpu"),
        (f"{GROUP}/rayStartParams/labels", "a=b", "beside rayStartParams"),
        (f"{GROUP}/labels/kind of", "spot", "Invalid label key"),
        (f"{GROUP}/replicas", 99, "between their bounds"),
        (f"{GROUP}/maxReplicas", 1000, "cost guard"),
        (f"{HEAD}/volumes/1/name", "logs", "named ray-logs"),
        (f"{HEAD}/containers/0/volumeMounts/1/name", "tmp", "named ray-logs"),
        (f"{HEAD}/containers/0/env/0", {"name": "RAY_REDIS_ADDRESS", "value": "r"}, "Redis"),
        ("spec/headGroupSpec/rayStartParams/num-cpus", "4", "crowd out"),
        (f"{HEAD}/nodeSelector", {"terrafm.io/pool": "spot"}, "head is on spot"),
        (f"{WORKER}/automountServiceAccountToken", ABSENT, "Kubernetes API"),
        (f"{WORKER}/serviceAccountName", "terrafm-head", "autoscaler's account"),
        (f"{WORKER}/containers/0/lifecycle", ABSENT, "takes its rank"),
        (f"{WORKER}/terminationGracePeriodSeconds", 60, "before it has drained"),
        (f"{WORKER}/tolerations", ABSENT, "spot without"),
        (f"{WORKER}/securityContext/runAsNonRoot", False, "may be root"),
        (f"{WORKER}/containers/0/securityContext/readOnlyRootFilesystem", False, "its image"),
        (f"{WORKER}/containers/0/securityContext/capabilities", ABSENT, "gain rights"),
        (f"{WORKER}/containers/0/resources/limits/memory", ABSENT, "limits"),
        (f"{WORKER}/containers/0/env/0", {"name": "RAY_AUTH_TOKEN", "value": "x"}, "in a file"),
        (f"{WORKER}/containers/0/image", "terrafm:latest", "without a version"),
        (f"{WORKER}/volumes/4/emptyDir/medium", ABSENT, "/dev/shm"),
        (f"{GROUP}/template/metadata/labels", {}, "NetworkPolicy"),
    ],
)
def test_a_broken_cluster_is_refused(path, value, reason):
    cluster = one("gpu-elastic", "RayCluster")
    assert reason in str(problems(broken(cluster, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("spec/backofLimit", 3, "backofLimit"),
        ("spec/rayClusterSpec/autoscalerOption", {}, "autoscalerOption"),
        ("metadata/name", "a" * 48, "cannot have the name"),
        ("spec/rayClusterSpec", ABSENT, "no cluster"),
        ("spec/shutdownAfterJobFinishes", ABSENT, "suspend needs"),
        (
            "spec/deletionStrategy",
            {
                "deletionRules": [
                    {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 9}}
                ]
            },
            "deletionRules exclude",
        ),
        ("spec/suspend", False, "starts suspended"),
        ("spec/rayClusterSpec/enableInTreeAutoscaling", True, "fixed size"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/minReplicas", ABSENT, "must be set"),
        ("spec/entrypointNumCpus", 1, "onto a spot worker"),
        ("spec/entrypoint", "python -m ray_jobs.pretrain", "PATH"),
        ("spec/activeDeadlineSeconds", ABSENT, "in time"),
        ("spec/submitterPodTemplate/spec/securityContext", ABSENT, "may be root"),
        ("spec/rayClusterSpec/authOptions", ABSENT, "no token"),
    ],
)
def test_a_broken_job_is_refused(path, value, reason):
    assert reason in str(problems(broken(one("kueue", "RayJob"), path, value)))


@pytest.mark.parametrize(
    ("kind", "name", "path", "value", "reason"),
    [
        ("NetworkPolicy", "terrafm", "spec/policyType", ["Ingress"], "policyType"),
        ("NetworkPolicy", "terrafm", "spec/ingress/0/ports", 6379, "array"),
        ("ServiceAccount", "terrafm-worker", "automountServiceAccountToken", "no", "boolean"),
        ("Service", "terrafm-redis", "spec/ports/0/port", "redis", "integer"),
        ("StatefulSet", "terrafm-redis", "spec/selector", ABSENT, "selector"),
        ("StatefulSet", "terrafm-redis", "spec/template/spec/securityContext", ABSENT, "root"),
        (
            "StatefulSet",
            "terrafm-redis",
            "spec/template/spec/containers/0/env/0",
            {"name": "REDIS_PASSWORD", "value": "hunter2"},
            "in a file",
        ),
    ],
)
def test_a_broken_core_object_is_refused(kind, name, path, value, reason):
    assert reason in str(problems(broken(one("gcs-ft", kind, name), path, value)))


def test_the_network_lets_in_pods_and_operator_only():
    rules = one("gpu-elastic", "NetworkPolicy")["spec"]
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    own, operator = rules["ingress"]
    assert own == {"from": [{"podSelector": rules["podSelector"]}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    outside = rules["egress"][-1]["to"][0]["ipBlock"]
    # All of the link's own addresses: the metadata service of every cloud is among them.
    assert "169.254.0.0/16" in outside["except"]
    names = [one["to"][0] for one in rules["egress"] if one.get("ports", [{}])[0].get("port") == 53]
    # A pod of another namespace that takes the label is no name server.
    where = {"kubernetes.io/metadata.name": "kube-system"}
    assert names[0]["namespaceSelector"]["matchLabels"] == where
