"""What the commands' parsers are made of, without torch: flags and their texts, groups, help, and sentences about mistakes."""
