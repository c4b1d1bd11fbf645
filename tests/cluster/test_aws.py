"""cluster/aws.yaml holds Ray's schema, EC2's parameters and our own rules, and can break them."""

import json

import pytest
from aws_rules import cluster_problems, policy_problems
from documents import ABSENT, CLUSTER, broken, load

POLICIES = ["aws-head-policy.json", "aws-worker-policy.json"]
WORKER = "available_node_types/spot_l4"
HEAD = "available_node_types/head"


@pytest.fixture(scope="module")
def config():
    return load(CLUSTER / "aws.yaml")


@pytest.fixture(scope="module")
def environment():
    return (CLUSTER / "node_environment.sh").read_text()


def test_the_cluster_is_as_it_should_be(config, environment):
    assert cluster_problems(config, environment) == []


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("max_wokers", 3, "Ray refuses"),
        ("max_workers", "eight", "Ray refuses"),
        ("head_node_type", "brain", "Ray refuses"),
        (f"{WORKER}/node_config", ABSENT, "Ray refuses"),
        (f"{WORKER}/minimum", 0, "Ray refuses"),
        (f"{WORKER}/node_config/InstanceTyp", "g6.xlarge", "InstanceTyp"),
        (f"{WORKER}/node_config/BlockDeviceMappings/0/Ebs/VolumeSize", "150", "VolumeSize"),
        (f"{WORKER}/node_config/InstanceMarketOptions", ABSENT, "not spot"),
        (f"{WORKER}/node_config/BlockDeviceMappings/0/Ebs/Encrypted", False, "encrypted"),
        (f"{WORKER}/node_config/MetadataOptions/HttpTokens", "optional", "metadata"),
        (f"{WORKER}/node_config/IamInstanceProfile", ABSENT, "profile"),
        (f"{WORKER}/node_config/SecurityGroupIds", ABSENT, "security group"),
        (f"{WORKER}/min_workers", 1, "costs money"),
        (f"{WORKER}/max_workers", 100, "cost guard"),
        (f"{HEAD}/node_config/InstanceMarketOptions", {"MarketType": "spot"}, "on demand"),
        ("idle_timeout_minutes", ABSENT, "idle"),
        ("provider/cache_stopped_nodes", True, "stopped"),
        ("file_mounts/~1home~1ubuntu~1.ray~1auth_token", ABSENT, "no token"),
        ("file_mounts/~1home~1ubuntu~1other", "no-such-folder", "there is no"),
        ("setup_commands/0", "true", "read by others"),
        ("setup_commands/2", "pip install ray-3.0.0.dev0-cp311.whl", "nightly"),
        ("worker_setup_commands", [], "spot-notice.service"),
        ("head_start_ray_commands/1", "ray start --head --dashboard-host=0.0.0.0", "loopback"),
        ("worker_start_ray_commands/1", "ray start --adress=h:6379", "has no --adress"),
        ("worker_start_ray_commands/1", "RAY_AUTH_TOKEN=x ray start", "command line"),
    ],
)
def test_a_broken_cluster_is_refused(config, environment, path, value, reason):
    assert reason in str(cluster_problems(broken(config, path, value), environment))


@pytest.mark.parametrize("line", ["RAY_AUTH_MODE=token", "RAY_health_check_timeout_ms=3000"])
def test_a_node_without_its_environment_is_refused(config, environment, line):
    assert line in environment
    name = line.partition("=")[0]
    assert f"{name} is not" in str(cluster_problems(config, environment.replace(line, "")))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_allows_what_is_needed_and_no_more(name):
    assert policy_problems(json.loads((CLUSTER / name).read_text())) == []


@pytest.mark.parametrize(
    ("name", "path", "value", "reason"),
    [
        (POLICIES[0], "Statement/0/Action/0", "ec2:DescribeInstanzes", "there is no"),
        (POLICIES[0], "Statement/2/Resource", "*", "on everything"),
        (POLICIES[0], "Statement/2/Condition/NumericEquals", ABSENT, "metadata for containers"),
        (
            POLICIES[0],
            "Statement/2/Condition/StringEquals/ec2:MetadataHttpTokens",
            "optional",
            "metadata without a token",
        ),
        (POLICIES[0], "Statement/4/Condition", ABSENT, "images of anyone"),
        (POLICIES[0], "Statement/6/Condition", ABSENT, "of others"),
        (POLICIES[0], "Statement/7/Condition", ABSENT, "any service"),
        (POLICIES[1], "Statement/1/Action", "s3:*", "too much"),
        (POLICIES[1], "Statement/1/Resource", "arn:aws:s3:::*", "on everything"),
        (POLICIES[1], "Version", "2008-10-17", "old"),
    ],
)
def test_a_policy_of_more_is_refused(name, path, value, reason):
    policy = json.loads((CLUSTER / name).read_text())
    assert reason in str(policy_problems(broken(policy, path, value)))


def test_the_head_may_start_what_the_cluster_asks_for(config):
    """Instance types, group and profile stand in two files."""
    policy = json.loads((CLUSTER / POLICIES[0]).read_text())
    allowed = policy["Statement"][2]["Condition"]["StringEquals"]
    workers = [
        kind["node_config"]
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    assert {node["InstanceType"] for node in workers} == set(allowed["ec2:InstanceType"])
    assert allowed["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    for node in workers:
        assert allowed["ec2:InstanceProfile"].endswith(f"/{node['IamInstanceProfile']['Name']}")
        assert f"security-group/{node['SecurityGroupIds'][0]}" in str(policy["Statement"][3])


def test_the_page_makes_the_group_where_the_machines_are(config):
    page = (CLUSTER / "README.md").read_text()
    assert f"AWS_DEFAULT_REGION={config['provider']['region']} " in page
