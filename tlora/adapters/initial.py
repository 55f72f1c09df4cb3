"""Save an adapter before training, for any trainer that continues from one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Template
from peft import PeftModel

from tlora.adapters.attach import attach_options
from tlora.adapters.files import (
    BASE,
    FROZEN_A,
    PAGE,
    PAGE_TITLE,
    SAVE_INITIAL,
    WRITER,
    earlier_files,
    refuse_other_writer,
    write_adapter,
)
from tlora.adapters.lora_layers import (
    adapter_config,
    adapter_tensors,
    lora_updates,
    require_one_lora,
)
from tlora.adapters.update import LoraUpdate
from tlora.models.weights import base_fingerprints
from tlora.utils.file_names import ADAPTER_CONFIG
from tlora.utils.files import replace_files
from tlora.utils.logs import without_noise
from tlora.utils.text import ranks_text
from tlora.utils.validation import check_arguments


def save_initial(adapted: PeftModel, folder: str | os.PathLike[str]) -> Path:
    """Write an untrained adapter (``B`` zero) that any trainer continues from, and a page that says how.

    Parameters
    ----------
    adapted : peft.PeftModel
        From `attach`.
    folder : path-like
        Folder to write: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them, ``README.md``
        with instructions for PEFT, TRL, LLaMA-Factory and axolotl, and a record of the base and of whether ``A`` is
        frozen, which `tlora.load_adapter` reads. An untrained adapter in it is replaced, other files stay.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ValueError
        If there is no LoRA adapter, or it was trained: some ``B`` is not zero.
    FileExistsError
        If the folder holds a model, or an adapter that this function did not write.

    Notes
    -----
    PEFT's format cannot record that ``A`` is frozen: other trainers train it, unless they use `FreezeA`.

    Examples
    --------
    >>> adapted = tlora.attach(model, subspaces, allocation)
    >>> folder = tlora.save_initial(adapted, "start")
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'tlora']
    """
    check_arguments(save_initial, locals())
    refuse_other_writer(folder, SAVE_INITIAL)
    require_one_lora(adapted, "save_initial", experts=True)
    updates = lora_updates(adapted)
    trained = next((name for name, update in updates.items() if update.b.any()), None)
    if trained is not None:
        raise ValueError(f"B of {trained} is not zero, so the adapter was trained: save it with save_pretrained()")
    frozen_a = not any(update.a.requires_grad for update in updates.values())
    record = {
        WRITER: SAVE_INITIAL,
        BASE: {name: values.tolist() for name, values in base_fingerprints(adapted).items()},
        FROZEN_A: frozen_a,
    }
    earlier = earlier_files(folder)
    with without_noise(), replace_files(folder, last=ADAPTER_CONFIG, earlier=earlier) as fresh:
        write_adapter(fresh, adapter_tensors(adapted), adapter_config(adapted), record)
        if PAGE in earlier or not Path(folder, PAGE).exists():  # a page of the user stays
            (fresh / PAGE).write_text(_page(adapted, updates, Path(folder), frozen_a), encoding="utf-8")
    return Path(folder)


def _page(adapted: PeftModel, updates: Mapping[str, LoraUpdate], folder: Path, frozen_a: bool) -> str:
    base = adapted.config.name_or_path or "BASE"
    start, how = "", attach_options(adapted)
    if how is not None:
        start = "at random" if how["kind"] is None else f"along directions of kind {how['kind']}"
    return Template(_TEXT, trim_blocks=True, keep_trailing_newline=True).render(
        base=base,
        folder=folder.as_posix(),
        auto=type(adapted.get_base_model()).__name__,
        modules=len(updates),
        ranks=ranks_text(update.rank for update in updates.values()),
        start=start,
        frozen=frozen_a,
        b=f"{sum(update.b.numel() for update in updates.values()):,}",
        both=f"{sum(update.a.numel() + update.b.numel() for update in updates.values()):,}",
    )


_TEXT = (
    PAGE_TITLE
    + """{{ base }}

{{ modules }} modules with {{ ranks }}, written by `tlora` before training. `B` is zero: until a trainer continues from
here, the model computes what the base computes.{{ " `A` starts " ~ start ~ "." if start }}
`B` has {{ b }} parameters, `A` and `B` together have {{ both }}.

{% if frozen %}
| trainer | `A` stays frozen |
|---|---|
| `tlora.load_adapter`, `tlora.train` | as it was attached |
| PEFT, your own loop | with `tlora.freeze_a(model)` |
| TRL, `transformers.Trainer` | with `callbacks=[tlora.FreezeA()]` |
| axolotl | with a plugin that returns `[tlora.FreezeA()]` from `add_callbacks_pre_trainer` |
| LLaMA-Factory | no |

If `A` is trained too, it takes its share of the optimizer's memory.
{% else %}
`A` and `B` are both trained, by `tlora.train` and by every trainer below.
{% endif %}

## PEFT

```python
from peft import PeftModel
from transformers import {{ auto }}
{% if frozen %}
import tlora
{% endif %}

base = {{ auto }}.from_pretrained("{{ base }}")
model = PeftModel.from_pretrained(base, "{{ folder }}", is_trainable=True)
{% if frozen %}
tlora.freeze_a(model)  # omit to train A too
{% endif %}
```

## TRL

The model as above, and no `peft_config`:

```python
from trl import SFTTrainer

trainer = SFTTrainer(model, train_dataset=rows{{ ", callbacks=[tlora.FreezeA()]" if frozen }})
```

## LLaMA-Factory

```yaml
model_name_or_path: {{ base }}
adapter_name_or_path: {{ folder }}
stage: sft
do_train: true
finetuning_type: lora
```

Do not set `create_new_adapter`: it merges this adapter and trains a random one. `lora_rank`,
`lora_alpha` and `lora_target` have no effect: ranks and scalings are those of the folder.

## axolotl

```yaml
base_model: {{ base }}
adapter: lora
lora_model_dir: {{ folder }}
```

`lora_r`, `lora_alpha`, `lora_target_modules` and the patterns have no effect: the adapter in the folder has its own.
"""
)
