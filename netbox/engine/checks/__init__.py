"""What ``netbox check`` looks at: ``catalogue`` lists and judges (pure), ``host`` reads files and starts the probes."""
