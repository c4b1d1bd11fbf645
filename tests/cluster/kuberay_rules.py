"""What a document for Kubernetes must hold; each check returns what is wrong.

The JSON schemas of RayCluster and RayJob are those of KubeRay 1.7 with unknown keys forbidden.
`operator_problems` holds what its operator refuses, or does differently than meant, beyond them.
"""

import re

import kubernetes_validate
from documents import schema
from jsonschema import Draft7Validator
from ray._private.label_utils import parse_node_labels_string
from ray.scripts.scripts import cli as ray_cli

KUBERNETES = "1.33"
# Of the name of a RayJob and of a RayCluster.
LONGEST = {"RayJob": 47, "RayCluster": 63}

_validators = {kind: Draft7Validator(schema(kind.lower())) for kind in LONGEST}


def problems(document):
    """All that is wrong with one document of a rendered overlay."""
    kind = document["kind"]
    if kind not in _validators:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [str(error)]
        return list(pod_problems(document["spec"]["template"])) if kind == "StatefulSet" else []
    found = [e.json_path + ": " + e.message for e in _validators[kind].iter_errors(document)]
    if found:
        return found
    name = document["metadata"]["name"]
    if len(name) > LONGEST[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"{kind} cannot have the name {name}")
    if kind == "RayCluster":
        return found + operator_problems(document["spec"]) + house_problems(document["spec"])
    return found + job_problems(document)


def job_problems(document):
    """Of a RayJob with a cluster of its own."""
    spec = document["spec"]
    found = []
    if "rayClusterSpec" not in spec:
        return ["the job has no cluster"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        found.append("deletionRules exclude shutdownAfterJobFinishes and its TTL")
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        found.append("suspend needs shutdownAfterJobFinishes")
    if "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {}):
        if not spec.get("suspend"):
            found.append("a queued job starts suspended")
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            found.append("Kueue wants a cluster of a fixed size")
    if {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & set(spec):
        found.append("a driver with resources may be put onto a spot worker")
    if not spec["entrypoint"].startswith("/"):
        found.append("the interpreter is whatever the raylet's PATH finds")
    if not spec.get("activeDeadlineSeconds"):
        found.append("no cost guard in time")
    if spec.get("submissionMode") == "K8sJobMode":
        found += pod_problems(spec["submitterPodTemplate"])
    cluster = spec["rayClusterSpec"]
    return found + operator_problems(cluster) + house_problems(cluster)


def operator_problems(spec):
    """Rules of KubeRay's operator that its schema does not hold."""
    found = []
    groups = {"head": spec["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    auth = spec.get("authOptions", {})
    version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
    if auth.get("mode") == "token" and version < (2, 52):
        found.append("tokens need rayVersion 2.52 or later")
    scales = spec.get("enableInTreeAutoscaling", False)
    if scales and spec.get("autoscalerOptions", {}).get("version") == "v2":
        for name, group in groups.items():
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                found.append(f"{name}: autoscaler v2 needs restartPolicy Never")
    for name, group in groups.items():
        found += [f"{name}: {p}" for p in _group_problems(group)]
        if name != "head" and not scales and not {"minReplicas", "maxReplicas"} <= set(group):
            found.append(f"{name}: without autoscaling minReplicas and maxReplicas must be set")
        if name != "head" and not (
            group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0)
        ):
            found.append(f"{name}: replicas are not between their bounds")
    head_environment = {e["name"] for e in _ray_container(groups["head"]).get("env", [])}
    if head_environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
        found.append("Redis belongs into gcsFaultToleranceOptions")
    return found


def _group_problems(group):
    start = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield "resources in two places"
    known = {name for option in ray_cli.commands["start"].params for name in option.opts}
    for option in start:
        if f"--{option}" not in known:
            yield f"ray start has no --{option}"
    for label in group.get("labels", {}).items():
        try:
            parse_node_labels_string("=".join(label))
        except ValueError as error:
            yield str(error)
    if "labels" in start:
        yield "labels belong beside rayStartParams"
    mounts = {m["mountPath"]: m["name"] for m in _ray_container(group).get("volumeMounts", [])}
    volumes = {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}
    if mounts.get("/tmp/ray") != "ray-logs" or not set(mounts.values()) <= volumes:
        yield "the autoscaler's container looks for a volume named ray-logs at /tmp/ray"


def house_problems(spec):
    """Our own rules: token, cost, spot, what a pod may do, and time to save."""
    found = []
    if spec.get("authOptions", {}).get("mode") != "token":
        found.append("no token")
    elif not spec["authOptions"].get("secretName"):
        found.append("the operator would make a token of its own")
    head = spec["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        found.append("tasks may crowd out the driver")
    if "spot" in str(head["template"]["spec"].get("nodeSelector")):
        found.append("the head is on spot")
    found += [f"head: {p}" for p in pod_problems(head["template"])]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        name = group["groupName"]
        if not 0 < group.get("maxReplicas", 0) <= 16:
            found.append(f"{name}: no cost guard")
        if pod.get("automountServiceAccountToken", True):
            found.append(f"{name}: a worker holds a token for the Kubernetes API")
        if pod.get("serviceAccountName") == head["template"]["spec"].get("serviceAccountName"):
            found.append(f"{name}: the autoscaler's account")
        hook = _ray_container(group).get("lifecycle", {}).get("preStop", {})
        command = hook.get("exec", {}).get("command", [])
        if command[:1] != ["/usr/local/bin/drain_node"] or command[-1] != "wait":
            found.append(f"{name}: a removed pod takes its rank with it")
        elif int(command[1]) >= pod.get("terminationGracePeriodSeconds", 30):
            found.append(f"{name}: killed before it has drained")
        if group.get("labels", {}).get("ray.io/market-type") == "spot" and not (
            pod.get("nodeSelector") and pod.get("tolerations")
        ):
            found.append(f"{name}: spot without selector and toleration")
        found += [f"{name}: {p}" for p in pod_problems(group["template"])]
    return found


def pod_problems(template):
    """What a pod may do, what it takes, and whom it lets in."""
    pod = template["spec"]
    labels = template.get("metadata", {}).get("labels", {})
    if labels.get("app.kubernetes.io/part-of") != "terrafm":
        yield "the NetworkPolicy does not see it"
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "may be root"
    if not pod.get("securityContext", {}).get("seccompProfile"):
        yield "may make any system call"
    for container in pod["containers"]:
        context = container.get("securityContext", {})
        if not context.get("readOnlyRootFilesystem"):
            yield "may change its image"
        if context.get("allowPrivilegeEscalation", True) or context.get("capabilities") != {
            "drop": ["ALL"]
        }:
            yield "may gain rights"
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) & set(
            resources.get("limits", {})
        ):
            yield "without requests and limits"
        for variable in container.get("env", []):
            if re.search("TOKEN|PASSWORD|SECRET", variable["name"]) and "value" in variable:
                yield f"{variable['name']} stands in a file"
        if not re.search(r":[^:/]+$", container["image"]) or container["image"].endswith(":latest"):
            yield "an image without a version"
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        if "/dev/shm" in mounts:
            shm = volumes.get(mounts["/dev/shm"], {}).get("emptyDir", {})
            if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
                yield "/dev/shm is not memory of a known size"
        elif container["name"].startswith("ray-"):
            yield "the object store has 64 MiB"


def _ray_container(group):
    return group["template"]["spec"]["containers"][0]
