"""The options of the artifact store, which gateways and workers of one deployment share."""

from pathlib import Path
from typing import Any, Final

import click

from ops.artifact_place import ArtifactPlace, BucketPlace, FolderPlace, place_of
from ops.commands.durations import Duration
from ops.commands.spelling import require_text
from ops.commands.variables import option_or_variable

PLACE_VARIABLE: Final = "WARMLANE_ARTIFACTS"
# The longest validity of a link that AWS signs.
LINK_MAX_S: Final = 7 * 86_400.0


class PlaceType(click.ParamType[ArtifactPlace]):
    """A folder, or `s3://bucket/prefix`."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ArtifactPlace:
        if isinstance(value, FolderPlace | BucketPlace):
            return value
        try:
            place = place_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if ctx is not None and param is not None:
            require_text(ctx, param, str(place))
        return place


artifacts_option = option_or_variable(
    "--artifacts",
    envvar=PLACE_VARIABLE,
    type=PlaceType(),
    help="Where videos, thumbnails and images are: a folder, or s3://BUCKET/PREFIX, whose endpoint, region and keys "
    "come from the variables AWS_*, or from the instance. The same for every process of a deployment, and for no "
    "other deployment. [default: the folder artifacts of the data folder]",
)
links_option = option_or_variable(
    "--download-links",
    "links_last_s",
    envvar="WARMLANE_DOWNLOAD_LINKS",
    type=Duration(),
    help="Answer a download with 302 and a presigned link to the bucket of --artifacts, which is good for this long: "
    "the file does not pass through the gateway then. [default: off]",
)


def place_in(data_dir: Path, chosen: ArtifactPlace | None) -> ArtifactPlace:
    """The place that was *chosen*, or else the one in *data_dir*."""
    return chosen or FolderPlace(data_dir / "artifacts")


def placed(chosen: ArtifactPlace | None) -> list[str]:
    """`--artifacts` for the command line of another process, where it was given."""
    return [] if chosen is None else ["--artifacts", str(chosen)]


def require_links_possible(links_last_s: float | None, chosen: ArtifactPlace | None) -> None:
    """Raises click.BadParameter if the store has no links, or none that last *links_last_s*."""
    if links_last_s is None:
        return
    if not isinstance(chosen, BucketPlace):
        raise click.BadParameter("a folder has no links: it needs --artifacts s3://...", param_hint="--download-links")
    if not 1 <= links_last_s <= LINK_MAX_S:
        raise click.BadParameter("a link lasts from 1 s to 7 days", param_hint="--download-links")
