"""The template is what a careful operator would want: cfn-lint has nothing to say, no permission is wider than it must be,
data is encrypted, private and kept, and whatever fails is noticed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
sys.path.insert(0, str(DEPLOY))

import local  # noqa: E402

# A wildcard that may be in the resource of an allowed action, and why. The rest of the resource is named.
WILDCARD_RESOURCES = {
    "${Lake.Arn}/${FirehosePrefix}*": "objects that Firehose has yet to name, below the lake's prefix",
    "${Lake.Arn}/errors/*": "objects that Firehose has yet to name, below the error prefix",
}


@pytest.fixture(scope="module")
def template():
    return local.template()


@pytest.fixture(scope="module")
def resources(template):
    return template["Resources"]


def of_type(resources, kind):
    return {name: resource for name, resource in resources.items() if resource["Type"] == kind}


def as_list(value):
    return value if isinstance(value, list) else [value]


def statements(resources):
    """Every statement of every policy, and whose it is."""
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        policies = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
        policies += [properties[key] for key in ("PolicyDocument", "AssumeRolePolicyDocument") if key in properties]
        for policy in policies:
            for statement in as_list(policy["Statement"]):
                yield name, statement


def test_cfn_lint_has_nothing_to_say():
    program = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run([sys.executable, program, DEPLOY / "template.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def problems(resources):
    """What is too wide in these policies."""
    for name, statement in statements(resources):
        if statement["Effect"] == "Deny":
            continue
        for action in as_list(statement["Action"]):
            if "*" in action:
                yield f"{name} allows {action}"
        for key in ("NotAction", "NotResource", "NotPrincipal"):
            if key in statement:
                yield f"{name} allows all but what {key} names"
        principal = statement.get("Principal", {})
        if principal == "*" or "*" in as_list(principal.get("AWS", [])):
            yield f"{name} allows everybody"
        for resource in as_list(statement.get("Resource", [])):
            text = resource if isinstance(resource, str) else json.dumps(resource)
            if "*" in text and resource.get("Fn::Sub") not in WILDCARD_RESOURCES if isinstance(resource, dict) else "*" in text:
                yield f"{name} allows {statement['Action']} on {text}"
            if isinstance(resource, str):
                yield f"{name} names {text} in place of a resource of this stack"


def test_no_permission_is_wider_than_it_must_be(resources):
    assert list(problems(resources)) == []
    assert len({name for name, _ in statements(resources)}) >= 6, "the policies were found"


@pytest.mark.parametrize("statement, word", [
    ({"Effect": "Allow", "Action": "s3:*", "Resource": {"Ref": "Lake"}}, "s3:*"),
    ({"Effect": "Allow", "Action": ["sqs:SendMessage", "*"], "Resource": {"Ref": "Lake"}}, "allows *"),
    ({"Effect": "Allow", "Action": "s3:Get*", "Resource": {"Ref": "Lake"}}, "s3:Get*"),
    ({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}, "on *"),
    ({"Effect": "Allow", "Action": "s3:GetObject", "Resource": {"Fn::Sub": "${Lake.Arn}/*"}}, "${Lake.Arn}/*"),
    ({"Effect": "Allow", "NotAction": "s3:GetObject", "Action": [], "Resource": {"Ref": "Lake"}}, "NotAction"),
    ({"Effect": "Allow", "Action": "s3:GetObject", "Principal": "*", "Resource": {"Ref": "Lake"}}, "everybody"),
    ({"Effect": "Allow", "Action": "s3:GetObject", "Principal": {"AWS": "*"}, "Resource": {"Ref": "Lake"}}, "everybody"),
])
def test_the_check_finds_what_it_is_for(statement, word):
    role = {"Type": "AWS::IAM::Role", "Properties": {"Policies": [{"PolicyDocument": {"Statement": [statement]}}]}}
    assert word in "; ".join(problems({"Bad": role}))


def test_the_bucket_is_private_encrypted_and_only_reached_by_tls(resources):
    for name, bucket in of_type(resources, "AWS::S3::Bucket").items():
        properties = bucket["Properties"]
        assert all(properties["PublicAccessBlockConfiguration"].values()) and len(properties["PublicAccessBlockConfiguration"]) == 4
        assert properties["BucketEncryption"] and properties["OwnershipControls"]
        policies = [p["Properties"] for p in of_type(resources, "AWS::S3::BucketPolicy").values() if p["Properties"]["Bucket"] == {"Ref": name}]
        denied = [s for policy in policies for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
        assert any(s["Condition"] == {"Bool": {"aws:SecureTransport": "false"}} and len(s["Resource"]) == 2 for s in denied)


def test_what_cannot_be_made_again_is_kept(resources):
    for kind in ("AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::SecretsManager::Secret"):
        for name, resource in of_type(resources, kind).items():
            assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain", name
    [table] = of_type(resources, "AWS::DynamoDB::Table").values()
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["Properties"]["SSESpecification"] == {"SSEEnabled": True}
    assert table["Properties"]["TimeToLiveSpecification"]["AttributeName"] == "expires_at"
    # Kept and named, they would stand in the way of the next stack of this name.
    assert "TableName" not in table["Properties"]


def test_the_sites_are_not_in_the_template(resources):
    [secret] = of_type(resources, "AWS::SecretsManager::Secret").values()
    assert set(secret["Properties"]) == {"Description"}


def test_functions_log_into_groups_that_expire_and_cannot_make_others(resources):
    functions = of_type(resources, "AWS::Serverless::Function")
    assert len(functions) == 3
    for name, function in functions.items():
        properties = function["Properties"]
        group = resources[properties["LoggingConfig"]["LogGroup"]["Ref"]]
        assert group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
        assert properties["Timeout"] and properties["MemorySize"] and properties["Runtime"] == "provided.al2023"
    actions = [action for _, statement in statements(resources) for action in as_list(statement["Action"])]
    assert "logs:CreateLogGroup" not in actions
    for name, group in of_type(resources, "AWS::Logs::LogGroup").items():
        assert "RetentionInDays" in group["Properties"], name


def test_each_function_is_watched_and_every_alarm_is_sent(resources):
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    watched = {(a["Properties"]["MetricName"], d["Value"]["Ref"]) for a in alarms.values() if a["Properties"]["Namespace"] == "AWS/Lambda"
               for d in a["Properties"]["Dimensions"]}
    for function in of_type(resources, "AWS::Serverless::Function"):
        assert {("Errors", function), ("Throttles", function)} <= watched
    metrics = {alarm["Properties"]["MetricName"] for alarm in alarms.values()}
    assert {"5xx", "ApproximateNumberOfMessagesVisible", "DeliveryToS3.DataFreshness", "ThrottledRecords", "unaccounted"} <= metrics
    for name, alarm in alarms.items():
        assert alarm["Properties"]["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        # Silence is not trouble: a stage without traffic has no figures.
        assert alarm["Properties"]["TreatMissingData"] == "notBreaching", name


def test_queues_are_encrypted_and_keep_their_messages(resources):
    for name, queue in of_type(resources, "AWS::SQS::Queue").items():
        assert queue["Properties"]["SqsManagedSseEnabled"] is True, name
        assert queue["Properties"]["MessageRetentionPeriod"] == 14 * 24 * 3600, name


def test_a_revoked_key_is_refused_within_a_minute(resources):
    [authorizer] = of_type(resources, "AWS::ApiGatewayV2::Authorizer").values()
    secret = (Path(__file__).parents[1] / "src/sites/secret.rs").read_text()
    lifetime = int(secret.split("pub const LIFETIME: Duration = Duration::from_secs(")[1].split(")")[0])
    properties = authorizer["Properties"]
    assert properties["AuthorizerResultTtlInSeconds"] + lifetime < 60
    # Any other source would refuse servers, which send no Origin, without a call.
    assert properties["IdentitySource"] == ["$request.header.Authorization"]
    assert properties["EnableSimpleResponses"] is True and properties["AuthorizerPayloadFormatVersion"] == "2.0"


def test_only_this_api_may_invoke_the_functions_whose_context_is_trusted(resources):
    permissions = of_type(resources, "AWS::Lambda::Permission").values()
    assert {p["Properties"]["FunctionName"]["Ref"] for p in permissions} == {"CollectorFunction", "AuthorizerFunction"}
    for permission in permissions:
        assert permission["Properties"]["Principal"] == "apigateway.amazonaws.com"
        assert ":${Api}/" in permission["Properties"]["SourceArn"]["Fn::Sub"]


def test_every_route_that_needs_a_key_has_the_authorizer_and_no_preflight_meets_it(resources):
    routes = {r["Properties"]["RouteKey"]: r["Properties"] for r in of_type(resources, "AWS::ApiGatewayV2::Route").values()}
    open_routes = {key for key, route in routes.items() if route["AuthorizationType"] == "NONE"}
    assert open_routes == {"$default"}
    assert all(key.split()[0] in ("GET", "POST") for key in routes if key != "$default")
    assert {"POST /v1/batch", "POST /web/page_view", "POST /button/click", "POST /track", "GET /web/page_view/count",
            "GET /button/click/count", "GET /v1/counts", "GET /v1/counts/top"} <= routes.keys()
    cors = resources["Api"]["Properties"]["CorsConfiguration"]
    assert "authorization" in cors["AllowHeaders"] and "*" not in cors["AllowHeaders"]
    stage = resources["ApiStage"]["Properties"]
    assert stage["AutoDeploy"] is True
    assert {"ThrottlingRateLimit", "ThrottlingBurstLimit"} <= stage["DefaultRouteSettings"].keys()
    assert not {"authorization", "ip", "path"} & set(stage["AccessLogSettings"]["Format"].lower().replace("$context.", " ").split('"'))


def test_firehose_keeps_within_what_aws_demands_where_local_aws_does_not_look(template, resources):
    destination = resources["DeliveryStream"]["Properties"]["ExtendedS3DestinationConfiguration"]
    parameters = {p["ParameterName"]: p["ParameterValue"] for p in destination["ProcessingConfiguration"]["Processors"][0]["Parameters"]}
    # 1 MB in, base64 and growth, below 6 MB out.
    assert parameters["BufferSizeInMBs"] == "1"
    assert resources["TransformFunction"]["Properties"]["Timeout"] <= 300
    assert "YYYY" not in destination["Prefix"]["Fn::Sub"] + destination["ErrorOutputPrefix"]
    # Not below the lake's prefix, whatever that is.
    assert destination["ErrorOutputPrefix"].startswith("errors/")
    assert template["Parameters"]["FirehosePrefix"]["Default"] == "events/"
    assert resources["Integration"]["Properties"]["PayloadFormatVersion"] == "2.0"
    assert template["Parameters"]["CollectorTimeout"]["MaxValue"] < 30
    assert resources["AuthorizerFunction"]["Properties"]["Timeout"] < 10


def test_parameters_and_outputs_are_what_the_commands_and_the_readme_name(template):
    assert {"Stage", "FirehosePrefix", "Compression", "BufferingSeconds", "BufferingMegabytes", "CollectorMemory", "CollectorTimeout",
            "AllowedOrigins", "LogRetentionDays", "AlarmEmail", "ThrottlingRate", "ThrottlingBurst"} <= template["Parameters"].keys()
    assert {"TrackUrl", "DocsUrl", "LakeBucket", "DeliveryStream", "CountersTable", "SitesSecret", "CollectorFunction",
            "AuthorizerFunction", "TransformFunction"} <= template["Outputs"].keys()
    readme = (DEPLOY / "README.md").read_text()
    for name in [*template["Parameters"], *template["Outputs"]]:
        assert f"`{name}`" in readme, f"{name} is not in the README"
