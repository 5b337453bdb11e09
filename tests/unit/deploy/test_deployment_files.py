"""Containers, compose file and Helm chart say what the command and the settings understand."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from deploy.cli import app
from deploy.core.shares import role_resources
from deploy.core.state import Role
from deploy.ray_head import OBJECT_STORE_BYTES
from deploy.services import PREFIXES
from deploy.settings import ControllerSettings
from encoder_service.settings import EncoderSettings
from router.settings import RouterSettings
from shard_service.settings import ShardSettings
from shoal import settings
from tests.unit.deploy.charts import Unsupported, references, render, render_text

ROOT = Path(__file__).resolve().parents[3]
CONTAINER = ROOT / "deploy" / "container"
CHART = ROOT / "deploy" / "kubernetes" / "shoal"
RELEASE = "papers"
SETTINGS = {
    Role.CONTROLLER: ControllerSettings,
    Role.ENCODER: EncoderSettings,
    Role.ROUTER: RouterSettings,
    Role.SERVER: ShardSettings,
}
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parsed(line: list[str]) -> dict[str, Any]:
    """A command line's options, by the real parser, which refuses what it does not know."""
    program, name, *arguments = line
    assert program == "shoal"
    options: dict[str, Any] = COMMANDS[name].make_context(name, arguments).params
    return options


def check_environment(environment: Mapping[str, str]) -> None:
    """Every `SHOAL_*` is a setting of a service, with a value it takes, or of the command."""
    of_commands = {p.envvar for command in COMMANDS.values() for p in command.params if p.envvar}
    for role, prefix in PREFIXES.items():
        settings.load(SETTINGS[role], prefix, environment)
    known = tuple(PREFIXES.values())
    assert {
        name
        for name in environment
        if name.startswith("SHOAL_") and not name.startswith(known) and name not in of_commands
    } == set()


# --- containers -----------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (CONTAINER / "Containerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def compose() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
    return made


def test_the_image_holds_every_package_at_the_pinned_versions() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    sources = {name for names in copied for name in names if not name.startswith("--")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {name.rstrip("*") for name in packages["packages"]["find"]["include"]}
    assert wanted <= sources
    sources.discard("/opt/shoal")
    assert all((ROOT / name).exists() for name in sources)
    ignored = (CONTAINER / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    text = (CONTAINER / "Containerfile").read_text()
    installer = (ROOT / "tools" / "install.sh").read_text()
    pinned = re.findall(r"install (?:--no-deps )?((?:torch|gt-[\w-]+)==[\d.]+)", installer)
    assert len(pinned) == 2
    assert all(pin in text for pin in pinned)
    extras = re.search(r'"\.\[([\w,]+)\]"', text)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_image_starts_a_cluster() -> None:
    [command] = [rest for word, rest in instructions() if word == "CMD"]
    options = parsed(json.loads(command))
    assert options["no_ray"]
    [exposed] = [rest for word, rest in instructions() if word == "EXPOSE"]
    assert options["port"] == int(exposed)
    environment = dict(
        pair.split("=", 1)
        for word, rest in instructions()
        if word == "ENV"
        for pair in shlex.split(rest)
    )
    check_environment(environment)
    [volume] = [rest for word, rest in instructions() if word == "VOLUME"]
    assert environment["SHOAL_DATA"] == volume


def test_compose_runs_what_the_command_knows() -> None:
    services = compose()["services"]
    up = parsed(services["shoal"]["command"])
    assert up["data"] == Path(services["shoal"]["volumes"][0].split(":")[1])
    kind, *probe = services["shoal"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert parsed(probe)["target"] == f"{services['shoal']['hostname']}:{up['port']}"
    [*_, script] = services["targets"]["command"]
    lines = re.findall(r"shoal \w.*?(?= >|$)", script, re.M)
    assert [parsed(shlex.split(line))["prometheus"] for line in lines] == [True]
    for service in services.values():
        check_environment(service.get("environment", {}))
    assert services["shoal"]["environment"]["SHOAL_CONTROLLER_HOST"] == "shoal"
    assert f"127.0.0.1:{up['port']}:{up['port']}" in services["shoal"]["ports"]


def test_compose_mounts_files_that_are_there() -> None:
    services, volumes = compose()["services"], compose()["volumes"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    assert len(mounts) > 5
    for mount in mounts:
        source = mount.split(":")[0]
        assert source in volumes or (CONTAINER / source).is_file(), mount
    build = services["shoal"]["build"]
    assert (CONTAINER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert services["shoal"]["image"] == services["targets"]["image"]
    assert services["shoal"]["image"] == f"shoal:{PROJECT['version']}"


# --- the chart ------------------------------------------------------------------------


def values() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return read


def rendered(changed: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
    """The chart with some values changed, each named by its path."""
    given = deepcopy(values())
    for path, value in (changed or {}).items():
        *folders, name = path.split(".")
        inner = given
        for folder in folders:
            inner = inner[folder]
        assert name in inner
        inner[name] = value
    return render(CHART, given, RELEASE)


def ray_cluster(changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    [made] = rendered(changed)["raycluster.yaml"]
    return dict(made["spec"])


def head_environment() -> dict[str, str]:
    [container] = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def up_options() -> dict[str, Any]:
    [job] = rendered()["up.yaml"]
    return parsed(shlex.split(job["spec"]["entrypoint"]))


def leaves(inner: Any, path: str = "") -> Iterator[str]:
    if isinstance(inner, dict) and inner:
        for name, value in inner.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path


def test_every_value_is_used_and_every_use_has_a_value() -> None:
    used = {
        path
        for template in (CHART / "templates").glob("*.yaml")
        for path in references(template.read_text())
    }
    paths = set(leaves(values()))

    def covers(whole: str, part: str) -> bool:
        return f"{part}.".startswith(f"{whole}.")

    assert {path for path in used if not any(covers(path, leaf) for leaf in paths)} == set()
    assert {leaf for leaf in paths if not any(covers(path, leaf) for path in used)} == set()


def test_the_chart_starts_the_cluster_that_its_values_describe() -> None:
    options = up_options()
    given = values()
    assert (options["shards"], options["encoders"], options["routers"]) == (
        given["servers"]["replicas"],
        given["encoders"]["replicas"],
        given["routers"]["replicas"],
    )
    assert options["data"] == Path(given["data"]["path"])
    host, _, port = options["ray"].partition(":")
    assert host == f"{RELEASE}-head-svc"
    [head] = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "gcs", "containerPort": int(port)} in head["ports"]


def test_the_head_hands_on_settings_that_exist() -> None:
    environment = head_environment()
    check_environment(environment)
    assert environment["SHOAL_CONTROLLER_ROUTER_PORT_STEP"] == "0", "each router has a pod"


def test_each_group_is_set_aside_for_its_role() -> None:
    groups = {group["groupName"]: group for group in ray_cluster()["workerGroupSpecs"]}
    assert set(groups) == {"encoders", "servers", "routers"}
    for role in (Role.ENCODER, Role.SERVER, Role.ROUTER):
        group = groups[f"{role.value}s"]
        # KubeRay hands the value to a shell: JSON in quotes, as one word.
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert offered == role_resources(role, offered)
        assert group["template"]["metadata"]["labels"]["shoal/role"] == role.value
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        assert int(group["rayStartParams"]["object-store-memory"]) == OBJECT_STORE_BYTES
    gpus = groups["encoders"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(groups["encoders"]["rayStartParams"]["num-gpus"]) == gpus["nvidia.com/gpu"]


def test_ports_agree() -> None:
    [service] = rendered()["service.yaml"]
    [port] = service["spec"]["ports"]
    options = up_options()
    assert port["port"] == options["port"]
    groups = {group["groupName"]: group for group in ray_cluster()["workerGroupSpecs"]}
    selected = groups[service["spec"]["selector"]["ray.io/group"]]
    open_ports = {
        name: {each["name"]: each["containerPort"] for each in container["ports"]}
        for name, group in groups.items()
        for container in group["template"]["spec"]["containers"]
    }
    assert open_ports[selected["groupName"]][port["targetPort"]] == options["port"]
    environment = head_environment()
    for role in (Role.ENCODER, Role.SERVER, Role.ROUTER):
        wanted = int(environment[PREFIXES[role] + "METRICS_PORT"])
        assert open_ports[f"{role.value}s"]["metrics"] == wanted
    assert environment["SHOAL_TARGET"] == f"{service['metadata']['name']}:{port['port']}"


def test_every_pod_mounts_the_data_as_the_images_user() -> None:
    cluster = ray_cluster()
    [claim] = rendered()["data.yaml"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    [user] = [rest for word, rest in instructions() if word == "USER"]
    for each in templates:
        pod = each["template"]["spec"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == values()["data"]["path"]
        assert pod["securityContext"]["runAsUser"] == int(user)


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == PROJECT["version"]
    assert values()["image"]["name"] == f"shoal:{PROJECT['version']}"
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"ray=={values()['ray']['version']}" in lock


def test_changed_values_change_what_they_should() -> None:
    assert rendered({"data.existingClaim": "old"})["data.yaml"] == []
    pods = ray_cluster({"data.existingClaim": "old"})["headGroupSpec"]["template"]["spec"]
    assert pods["volumes"][0]["persistentVolumeClaim"]["claimName"] == "old"
    [claim] = rendered({"data.storageClassName": "fast"})["data.yaml"]
    assert claim["spec"]["storageClassName"] == "fast"
    encoders, *others = ray_cluster({"encoders.image": "shoal:cuda"})["workerGroupSpecs"]
    images = [each["template"]["spec"]["containers"][0]["image"] for each in (encoders, *others)]
    assert images == ["shoal:cuda", *[values()["image"]["name"]] * 2]
    _, servers, _ = ray_cluster({"servers.nodeSelector": {"disk": "nvme"}})["workerGroupSpecs"]
    assert servers["template"]["spec"]["nodeSelector"] == {"disk": "nvme"}
    assert rendered()["podmonitor.yaml"] == []
    [monitor] = rendered({"metrics.podMonitor": True})["podmonitor.yaml"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["role", "process"]


def merged(base: Any, over: Any) -> Any:
    """Values upon values, as Helm does it: maps are merged, and null takes away."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    both = {name: merged(base[name], over[name]) for name in base.keys() & over.keys()}
    return {name: value for name, value in (base | over | both).items() if value is not None}


def test_encoders_without_gpus() -> None:
    over = yaml.safe_load((CHART / "values-cpu.yaml").read_text())
    [made] = render(CHART, merged(values(), over), RELEASE)["raycluster.yaml"]
    encoders = made["spec"]["workerGroupSpecs"][0]
    assert encoders["rayStartParams"]["num-gpus"] == "0"
    pod = encoders["template"]["spec"]
    assert set(pod["containers"][0]["resources"]["limits"]) == {"memory"}
    assert "tolerations" not in pod
    assert set(leaves(over)) <= set(leaves(values()))


@pytest.mark.skipif(shutil.which("helm") is None, reason="there is no helm here")
def test_helm_renders_the_same() -> None:
    shown = subprocess.run(
        ["helm", "template", RELEASE, str(CHART)], capture_output=True, text=True, check=True
    )
    ours = [document for documents in rendered().values() for document in documents]
    theirs = [document for document in yaml.safe_load_all(shown.stdout) if document]
    assert sorted(theirs, key=str) == sorted(ours, key=str)


# --- what the documentation says of them ------------------------------------------------


def test_the_operations_page_names_files_and_values_that_are_there() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"deploy/(?:container|kubernetes|observability)[\w./-]*[\w-]", page))
    assert len(named) >= 4
    assert {name for name in named if not (ROOT / name).exists()} == set()
    given = set(leaves(values()))
    assert set(re.findall(r"--set ([\w.]+)=", page)) <= given
    lines = re.findall(r"exec (?:[\w/-]+ -- |shoal )(shoal [^\n]+)", page)
    assert len(lines) >= 3
    for line in lines:
        parsed(shlex.split(line))


# --- the checks themselves --------------------------------------------------------------


def test_wrong_command_lines_and_settings_are_found_out() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["shoal", "up", "--shard-servers", "2"])
    with pytest.raises(ValueError, match="no setting"):
        check_environment({"SHOAL_ROUTER_PROT": "1"})
    with pytest.raises(AssertionError):
        check_environment({"SHOAL_ROUTERS_PORT": "1"})


def test_the_renderer_knows_its_limits() -> None:
    scope = {"Values": {"a": {"b": 1}, "none": "", "map": {"x": [1]}}}
    assert render_text("x: {{ .Values.a.b | quote }}", scope) == 'x: "1"'
    assert render_text("{{ .Values.none | default .Values.a.b }}", scope) == "1"
    conditional = "a\n{{- if .Values.none }}\nb\n{{- else }}\nc\n{{- end }}\nd"
    assert render_text(conditional, scope) == "a\nc\nd"
    block = "m:\n{{- with .Values.map }}\n  {{- toYaml . | nindent 2 }}\n{{- end }}"
    assert yaml.safe_load(render_text(block, scope)) == {"m": {"x": [1]}}
    for beyond in ("{{ range .Values.map }}", "{{ .Values.a.b | upper }}", "{{ if .Values.a }}"):
        with pytest.raises(Unsupported):
            render_text(beyond, scope)
