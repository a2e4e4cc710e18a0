"""A design that imports the example's node."""

SCRIPT = """
from workflow import AgentNode, Workflow
from workflow.plugins.longest import LongestNode
flow = Workflow()
flow.add_node(LongestNode("Best", [AgentNode("Short", "Be short."), AgentNode("Long", "Be long.")]))
flow.run(question)
"""
