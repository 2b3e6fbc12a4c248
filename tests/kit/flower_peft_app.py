"""A ClientApp as Flower's docs write one for a language model: transformers, PEFT, and state dicts by name."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config, base = message.content["config"], str(context.node_config["base-path"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(
            r=config["rank"],
            lora_alpha=config["alpha"],
            use_rslora=config["use-rslora"],
            target_modules=list(config["target-modules"]),
            task_type="CAUSAL_LM",
        ),
    )
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    lines = Path(str(context.node_config["data-path"])).read_text().splitlines()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config["learning-rate"])
    losses = []
    for step in range(config["steps"]):
        line = lines[step % len(lines)]
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=config["max-tokens"])["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord({"train_loss": losses[-1], "num-examples": len(lines)}),
        }
    )
    return Message(content=content, reply_to=message)
