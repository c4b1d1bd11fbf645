"""What cluster/aws.yaml and its policies must hold; each check returns what is wrong."""

import copy
import re

import botocore.session
from botocore.validate import ParamValidator
from documents import ROOT
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

NODE_FILE = "node_environment.sh"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}

_ec2 = botocore.session.get_session().get_service_model("ec2")


def cluster_problems(config, environment):
    """All that is wrong with a configuration of `ray up`.

    Args:
        config: of aws.yaml.
        environment: text of node_environment.sh.
    """
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (ValidationError, ValueError, KeyError) as error:
        return [f"Ray refuses it: {error}"]
    problems = []
    for name, kind in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        problems += [f"{name}: {p}" for p in node_problems(kind["node_config"], is_head)]
        if not is_head and kind.get("min_workers") != 0:
            problems.append(f"{name}: costs money when nothing runs")
        if not is_head and not 0 < kind.get("max_workers", 0) <= config["max_workers"]:
            problems.append(f"{name}: no cost guard")
    if len({k["node_config"]["InstanceType"] for k in config["available_node_types"].values()}) < 3:
        problems.append("one spot type alone is often sold out")
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        problems.append("idle machines stay")
    if config["provider"].get("cache_stopped_nodes", True):
        problems.append("stopped machines stay")
    return problems + _command_problems(config, environment)


def node_problems(node, is_head):
    """What is wrong with the parameters of RunInstances of one node type."""
    operation = _ec2.operation_model("RunInstances")
    report = ParamValidator().validate(
        {**node, "MinCount": 1, "MaxCount": 1}, operation.input_shape
    )
    problems = [report.generate_report()] if report.has_errors() else []
    options = node.get("MetadataOptions", {})
    if options.get("HttpTokens") != "required" or options.get("HttpPutResponseHopLimit") != 1:
        problems.append("the metadata service answers without a session, or to containers")
    if not node.get("SecurityGroupIds"):
        problems.append("Ray's own security group opens SSH to the world")
    if not node.get("IamInstanceProfile", {}).get("Name"):
        problems.append("no instance profile: Ray would make one with full access")
    volumes = [volume["Ebs"] for volume in node.get("BlockDeviceMappings", []) if "Ebs" in volume]
    if not volumes or not all(v.get("Encrypted") and v.get("DeleteOnTermination") for v in volumes):
        problems.append("a volume is not encrypted, or stays behind")
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    if market != (None if is_head else "spot"):
        problems.append("the head must be on demand" if is_head else "a worker is not spot")
    return problems


def _start_problems(statement, resources):
    """Machines with the old metadata service, and images of anyone."""
    condition = statement.get("Condition", {})
    if any(":instance/" in resource for resource in resources):
        if condition.get("StringEquals", {}).get("ec2:MetadataHttpTokens") != "required":
            yield "metadata without a token"
        if condition.get("NumericEquals", {}).get("ec2:MetadataHttpPutResponseHopLimit") != "1":
            yield "metadata for containers"
    images = any(":image/" in resource for resource in resources)
    if images and "ec2:Owner" not in str(condition):
        yield "images of anyone"


def _command_problems(config, environment):
    problems = []
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    everything = starts + config["setup_commands"] + config["worker_setup_commands"]
    for command in starts:
        if f"cluster/{NODE_FILE};" not in command:
            problems.append(f"starts Ray without {NODE_FILE}: {command}")
    known = {name for option in ray_cli.commands["start"].params for name in option.opts}
    for command in starts:
        for option in set(re.findall(r"(--[a-z-]+)", command.partition("ray start")[2])) - known:
            problems.append(f"ray start has no {option}")
    if not any("--head" in c and "--dashboard-host=127.0.0.1" in c for c in starts):
        problems.append("the dashboard is not on loopback")
    for command in everything:
        if re.search(r"\bRAY_AUTH_TOKEN=|--token|nightly|\.whl\b", command):
            problems.append(f"a token on a command line, or a nightly wheel: {command}")
    exported = dict(re.findall(r"^export (\w+)=(\S+)$", environment, re.M))
    for name, value in ENVIRONMENT.items():
        if exported.get(name) != value:
            problems.append(f"{NODE_FILE}: {name} is not {value}")
    if "/home/ubuntu/.ray/auth_token" not in config["file_mounts"]:
        problems.append("machines get no token")
    if not any("chmod 600 ~/.ray/auth_token" in c for c in config["setup_commands"]):
        problems.append("the token may be read by others")
    for remote, local in config["file_mounts"].items():
        if not local.startswith("~") and not (ROOT / local).exists():
            problems.append(f"{remote}: there is no {local}")
    workers = " ".join(config["worker_setup_commands"])
    for name in ("mount_nvme.sh", "spot-notice.service"):
        if f"terrafm/cluster/{name}" not in workers or not (ROOT / "cluster" / name).exists():
            problems.append(f"workers do without {name}")
    return problems


def policy_problems(policy):
    """What is wrong with an IAM policy: unknown actions, and more than it needs."""
    problems = []
    if policy.get("Version") != "2012-10-17":
        problems.append("an old policy language")
    for statement in policy["Statement"]:
        name = statement["Sid"]
        if statement["Effect"] != "Allow" or not re.fullmatch(r"[A-Za-z0-9]+", name):
            problems.append(f"{name}: not a statement that allows")
        actions, resources = (_listed(statement[key]) for key in ("Action", "Resource"))
        for action in actions:
            service, _, operation = action.partition(":")
            if "*" in action:
                problems.append(f"{name}: {action} is too much")
            elif service == "ec2" and operation not in _ec2.operation_names:
                problems.append(f"{name}: there is no {action}")
        sees_only = all(action.startswith("ec2:Describe") for action in actions)
        if any(r == "*" or r == "arn:aws:s3:::*" for r in resources) and not sees_only:
            problems.append(f"{name}: on everything")
        if "ec2:RunInstances" in actions:
            problems += [f"{name}: {p}" for p in _start_problems(statement, resources)]
        if "iam:PassRole" in actions and "Condition" not in statement:
            problems.append(f"{name}: to any service")
        if "ec2:TerminateInstances" in actions and "ray-cluster-name" not in str(statement):
            problems.append(f"{name}: machines of others")
    return problems


def _listed(value):
    return value if isinstance(value, list) else [value]
