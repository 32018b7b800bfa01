"""From a binary to a patch plan: data, with no decisions left for the agent."""
