"""A tiny model that reads images, with its processor, and a dataset of questions about images."""

import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from erprm_trl import dial


IMAGE_TOKEN = "<image>"
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
COLOURS = ((255, 0, 0), (0, 0, 255))


def save_llava(folder):
    """Saves a random model of about 20,000 parameters. Returns the folder's name and the processor."""
    tokenizer = dial.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=0, **size),
        vision_config=CLIPVisionConfig(image_size=8, patch_size=4, **size),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # the default initialisation gives nearly the same embedding to all images
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    return str(folder), processor


def questions_about_images(**columns):
    """A dataset of two questions with an image each."""
    images = [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    prompts = [[{"role": "user", "content": f"Tom dial {index}"}] for index in range(2)]
    return Dataset.from_dict({"prompt": prompts, "image": images, **columns})
