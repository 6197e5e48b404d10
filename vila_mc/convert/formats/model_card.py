"""README.md of an export."""

from collections.abc import Mapping

import torch

from vila_mc.config.model import ModelConfig
from vila_mc.topology.shapes import Shape


def model_card(model: ModelConfig, shapes: Mapping[str, Shape], *, needs_remote_code: bool) -> str:
    """What the model is and how to run it.

    Args:
        model: its shape.
        shapes: its tensors.
        needs_remote_code: whether it loads only with its own modelling file.
    """
    language, vision = model.language, model.vision
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    trust = ", trust_remote_code=True" if needs_remote_code else ""
    square = "image" if vision.most_tiles() == 1 else "tile"
    tower, family = vision.facts().title, language.facts().title
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vila]
---
# VILA

A vision-language model after VILA (arXiv 2312.07533), {parameters:,} parameters: a {tower} tower
({vision.built_layers()} layers, {vision.image_size} px, images {vision.images_become()}), a
`{model.connector.title()}` connector with {model.visual_tokens()} visual tokens per {square}, and a
{family} ({language.layers} layers, width {language.width}).

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

directory = "."  # where this file is
model = AutoModelForImageTextToText.from_pretrained(directory{trust})
processor = AutoProcessor.from_pretrained(directory{trust})

image = Image.open("photo.jpg")
question = [{{"type": "image", "image": image}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

For plain prompts call `processor(images=[...], text="<image>\\n...")`: each `<image>` stands for
one image. License, data and evaluation are for whoever trained the weights to state.
"""
