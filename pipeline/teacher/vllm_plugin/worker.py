"""What vLLM mixes into its workers, so that they can be told what to keep of a row."""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

from typing import Any

from pipeline.teacher.vllm_plugin.keep_file import read_keep


class KeepExtension:
    """Methods that `collective_rpc` calls by name, in each worker."""

    def keep_of_rows(self, settings: dict[str, Any], arrays: str | None) -> None:
        """From now on, keep of each row what `write_keep` wrote."""
        worker: Any = self
        worker.get_model().pooler.keep(read_keep(settings, arrays), worker.device)
