PRESETS = {"openai-compatible": 1, "openai": 1, "deepseek": 1, "anthropic": 1}
