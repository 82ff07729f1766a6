"""Two ways to sync from Airflow instead of the daemon's schedule: a container on the worker's engine, or a pod.

Copy the one that fits into your DAG folder and change what is in capitals. One task is one run of `fhir-sync sync`:
complete (0) succeeds; everything else, also partial (3), fails the task, and the next attempt or run continues where
it ended.

`max_active_runs=1` keeps the runs one after another. If one meets another fhir-sync all the same, it exits with 11 and
changes nothing. For a full refresh add a second DAG with `--full-refresh`, and for maintenance, which otherwise the
daemon does, a third with `maintain`.
"""

import datetime

import docker.types
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import dag
from kubernetes.client import models as k8s

IMAGE = "REGISTRY/fhir-sync@sha256:DIGEST"
SYNC = ["sync", "--config", "/etc/fhir-sync/fhir-sync.toml"]
SCHEDULE = {
    "start_date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "catchup": False,
    "max_active_runs": 1,
    "default_args": {"retries": 3, "retry_delay": datetime.timedelta(minutes=5)},
}


@dag(schedule="15 * * * *", **SCHEDULE)
def fhir_sync_docker() -> None:
    """The configuration and the key are files of the worker's host; state and tables are volumes of its engine."""
    DockerOperator(
        task_id="sync",
        image=IMAGE,
        command=SYNC,
        mount_tmp_dir=False,
        auto_remove="success",
        mounts=[
            docker.types.Mount("/etc/fhir-sync", "/etc/fhir-sync", type="bind", read_only=True),
            docker.types.Mount("/run/secrets/fhir-sync", "/etc/fhir-sync-key", type="bind", read_only=True),
            docker.types.Mount("/var/lib/fhir-sync", "fhir-sync-state", type="volume"),
            docker.types.Mount("/srv/lake", "fhir-sync-lake", type="volume"),
        ],
    )


@dag(schedule="15 * * * *", **SCHEDULE)
def fhir_sync_kubernetes() -> None:
    """A pod in the namespace of deploy/kubernetes, beside its claims and its Secret; scale its Deployment to 0 first."""
    KubernetesPodOperator(
        task_id="sync",
        namespace="fhir-sync",
        image=IMAGE,
        arguments=SYNC,
        # The network policies of deploy/kubernetes allow traffic by this label.
        labels={"app.kubernetes.io/name": "fhir-sync"},
        # A pod that is cut off from Airflow goes on: the next attempt finds it by its labels, and does not start another.
        reattach_on_restart=True,
        automount_service_account_token=False,
        termination_grace_period=90,
        startup_timeout_seconds=600,
        security_context=k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=65532,
            run_as_group=65532,
            fs_group=65532,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        container_security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
        container_resources=k8s.V1ResourceRequirements(
            requests={"cpu": "250m", "memory": "1Gi"}, limits={"memory": "4Gi"}
        ),
        volumes=[
            k8s.V1Volume(name="config", config_map=k8s.V1ConfigMapVolumeSource(name="CONFIGMAP")),
            k8s.V1Volume(name="key", secret=k8s.V1SecretVolumeSource(secret_name="fhir-sync-key", default_mode=0o400)),
            claim("state", "fhir-sync-state"),
            claim("lake", "fhir-sync-lake"),
            k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit="2Gi")),
        ],
        volume_mounts=[
            k8s.V1VolumeMount(name="config", mount_path="/etc/fhir-sync", read_only=True),
            k8s.V1VolumeMount(name="key", mount_path="/run/secrets/fhir-sync", read_only=True),
            k8s.V1VolumeMount(name="state", mount_path="/var/lib/fhir-sync"),
            k8s.V1VolumeMount(name="lake", mount_path="/srv/lake"),
            k8s.V1VolumeMount(name="tmp", mount_path="/tmp"),  # noqa: S108
        ],
    )


def claim(volume: str, name: str) -> k8s.V1Volume:
    source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=name)
    return k8s.V1Volume(name=volume, persistent_volume_claim=source)


fhir_sync_docker()
fhir_sync_kubernetes()
