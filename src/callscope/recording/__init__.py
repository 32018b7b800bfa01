"""From a plan and a program to a trace: launch, children, modules loaded late."""
