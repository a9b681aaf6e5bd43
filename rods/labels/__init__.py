"""Labels of images: labels.jsonl beside a run, whoever gave them."""
