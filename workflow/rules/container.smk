"""The image that `--software-deployment-method apptainer` takes. No rule lives here."""

import os

from snakemake.settings.types import DeploymentMethod

IMAGE = str(config.get("container", "containers/four-minutes.sif"))

# Read by `fourminutes launch`.
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    os.environ.update(
        FOURMINUTES_CONTAINER=IMAGE,
        FOURMINUTES_CONTAINER_ARGS=workflow.deployment_settings.apptainer_args,
    )


def around_each_process(wildcards):
    """No container around a rule's shell line, whose `fourminutes launch` puts every process into one of its own.

    It calls srun, which is the host's, and starts its processes on hosts, wherever it is called.
    """
    return None
