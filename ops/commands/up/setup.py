"""What one `warmlane up` was asked for."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from contracts.order import OrderName
from contracts.settings import Catalog
from ops.artifact_place import ArtifactPlace
from ops.commands.behind import Behind, Network
from ops.commands.images import ImageOptions
from ops.commands.option_types import ListenHost
from ops.commands.overload import OverloadOptions
from ops.machine.tls import Tls


class SystemSetup(Struct, frozen=True, kw_only=True):
    """The options of the command, checked; *lanes* is how many each model gets. Paths are absolute."""

    catalog: Catalog
    host: ListenHost
    port: int
    tls: Tls | None
    cors_origins: tuple[str, ...]
    webhooks_allow: tuple[Network, ...]
    images: ImageOptions
    behind: Behind
    nats_port: int
    data_dir: Path
    artifacts: ArtifactPlace | None = None
    links_last_s: float | None = None
    lanes: Mapping[str, int]
    gpus: int | None
    quota_file: Path | None
    standbys: int
    settings: Path | None
    keep_s: float
    log_max_bytes: int
    step_seconds: float
    load_seconds: float
    degraded_order: OrderName | None
    overload: OverloadOptions
    oom_snapshots: int

    @property
    def url(self) -> str:
        """Where clients on this machine find the gateway."""
        return self.host.url("http" if self.tls is None else "https", self.port)

    @property
    def lane_count(self) -> int:
        """The lanes of all models together."""
        return sum(self.lanes.values())

    def log_file(self, name: str) -> Path:
        """The file in which the process *name* logs."""
        return self.data_dir / "logs" / f"{name}.log"
