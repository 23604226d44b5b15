"""The parsers of the commands, without torch: flags and their texts, groups, help, and error messages."""
