"""The health of a mesh to protobuf and back."""

from __future__ import annotations

from mmesh import wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus

_ROLES = {
    ServiceRole.ENCODER: pb.SERVICE_ROLE_ENCODER,
    ServiceRole.INDEX: pb.SERVICE_ROLE_INDEX,
    ServiceRole.RERANKER: pb.SERVICE_ROLE_RERANKER,
}
_STATES = {
    ServiceState.SERVING: pb.SERVICE_STATE_SERVING,
    ServiceState.LOADING: pb.SERVICE_STATE_LOADING,
    ServiceState.DRAINING: pb.SERVICE_STATE_DRAINING,
    ServiceState.UNREACHABLE: pb.SERVICE_STATE_UNREACHABLE,
    ServiceState.FAILING: pb.SERVICE_STATE_FAILING,
    ServiceState.MISSING: pb.SERVICE_STATE_MISSING,
}
_ROLE_OF, _STATE_OF = wire.by_number(_ROLES), wire.by_number(_STATES)


def status_to_pb(status: MeshStatus) -> pb.GetStatusResponse:
    """Return the message of `status`."""
    services = [
        pb.ServiceStatus(
            role=_ROLES[one.role],
            state=_STATES[one.state],
            address=one.address,
            shard=one.shard,
            shard_count=one.shard_count,
            replica=one.replica,
            detail=one.detail,
        )
        for one in status.services
    ]
    return pb.GetStatusResponse(
        services=services, version=status.version, shard_count=status.shard_count
    )


def status_from_pb(message: pb.GetStatusResponse) -> MeshStatus:
    """Return the status of `message`; a state that this release does not know is a failure."""
    services = tuple(
        ServiceStatus(
            _ROLE_OF[one.role],
            _STATE_OF.get(one.state, ServiceState.FAILING),
            one.address,
            one.shard,
            one.shard_count,
            one.replica,
            one.detail,
        )
        for one in message.services
        if one.role in _ROLE_OF
    )
    return MeshStatus(services, message.version, message.shard_count)
