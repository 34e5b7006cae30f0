"""The flow of maintenance: `gsec prune` on a schedule."""

from prefect import flow, get_run_logger

from flows import roots
from gsec_core.errors import GsecError, without_secrets
from gsec_core.store import Store, prune
from tasks import artifacts


@flow(name="gsec-maintenance", persist_result=False)
def maintenance(stores: list[str], keep_runs: int = prune.KEEP_RUNS, dry_run: bool = False) -> int:
    """Delete tables and runs that are no longer needed, but nothing younger than a day, and no embeddings or descriptions of live images.

    Args:
        stores: The stores to prune.
        keep_runs: Number of newest runs of each corpus to keep. Published and unfinished runs are always kept.
        dry_run: Only report what would be deleted.
    """
    for url in stores:
        roots.check_store(url)
    count, failed = 0, []
    for url in stores:
        try:
            deletions = [deletion for deletion in prune.plan(Store.open(url), keep_runs) if dry_run or deletion.carry_out()]
        except (GsecError, OSError) as error:  # one store that is damaged or does not answer must not keep the others from being pruned
            failed.append(without_secrets(str(error)))
            get_run_logger().error("%s", failed[-1])
            continue
        count += len(deletions)
        get_run_logger().info("%s: %d %s", url, len(deletions), "would be deleted" if dry_run else "deleted")
        artifacts.show_deletions(url, [(deletion.path, deletion.why) for deletion in deletions], dry_run)
    if failed:
        raise GsecError(" ".join(failed))
    return count
