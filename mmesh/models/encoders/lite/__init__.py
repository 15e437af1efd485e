"""`lite`, the embedded default encoder: real pretrained weights from packages, no model hub.

Text is MiniLM-L6-v2. Pictures are EfficientNet-Lite0, mapped into the space of the texts. Both run
on the CPU without torch. `data/MODEL_CARD.md` says what it can and cannot do.
"""

from mmesh.models.encoders.lite.model import LiteEncoder, load_lite

__all__ = ["LiteEncoder", "load_lite"]
