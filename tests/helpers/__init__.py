"""What tests share: tiny models, data, commands, examples of results."""
