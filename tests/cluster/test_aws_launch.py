"""Ray's own AWS code takes cluster/aws.yaml through to machines of a simulated EC2."""

import copy

import boto3
import pytest
import yaml
from documents import CLUSTER
from moto import mock_aws
from ray.autoscaler._private.aws import config as ray_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

REGION = "eu-central-1"


@pytest.fixture
def bootstrapped(monkeypatch, tmp_path):
    """The configuration after `ray up`'s look-ups; its key pair lies under another home."""
    (tmp_path / ".ssh").mkdir()
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "simulated",
        "AWS_SECRET_ACCESS_KEY": "simulated",
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        ec2, iam = boto3.client("ec2", REGION), boto3.client("iam")
        group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for name in ("terrafm-head", "terrafm-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        text = (CLUSTER / "aws.yaml").read_text().replace("sg-YOUR-GROUP", group)
        config = ray_aws.bootstrap_aws(prepare_config(yaml.safe_load(text)))
        for kind in config["available_node_types"].values():
            assert kind["node_config"]["ImageId"].startswith("resolve:ssm:")
            # The simulation resolves no parameters.
            kind["node_config"]["ImageId"] = image
        yield config


def test_every_node_type_exists_and_has_what_the_recipes_need(bootstrapped):
    filled = AWSNodeProvider.fillout_available_node_types_resources(copy.deepcopy(bootstrapped))
    kinds = filled["available_node_types"]
    assert kinds.pop("head")["resources"]["CPU"] == 0
    for kind in kinds.values():
        assert kind["resources"]["GPU"] == 1
        assert kind["resources"]["CPU"] >= 16


def test_machines_start_as_they_should(bootstrapped):
    provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
    for name, kind in bootstrapped["available_node_types"].items():
        tags = {"ray-node-kind": "worker", "ray-user-node-type": name, "ray-launch-config": "x"}
        (machine,) = provider.create_node(kind["node_config"], tags, 1).values()
        is_head = name == bootstrapped["head_node_type"]
        assert machine.instance_lifecycle == (None if is_head else "spot")
        assert machine.metadata_options["HttpTokens"] == "required"
        role = "terrafm-head" if is_head else "terrafm-worker"
        assert machine.iam_instance_profile["Arn"].endswith(role)
        assert {"Key": "ray-cluster-name", "Value": "terrafm"} in machine.tags


def test_no_group_is_opened_to_the_world(bootstrapped):
    """Ray adds its own rule for SSH from anywhere to groups that it makes."""
    for group in boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]:
        assert not group["GroupName"].startswith("ray-autoscaler")
        assert "0.0.0.0/0" not in str(group["IpPermissions"])
