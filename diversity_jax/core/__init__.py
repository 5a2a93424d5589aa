"""What all layers share: errors, files, configurations, commands, progress, stored artifacts, intervals, formats."""
