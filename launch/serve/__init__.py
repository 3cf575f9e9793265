"""Models behind HTTP: `python -m launch.serve MODEL=DIR --port=8000`; see docs/serving.md.

`gate` stands in front of everything and decides who may do what; a file of routes (`kserve`,
`admin`) says which scope each of its routes needs; `repository` holds the versions of the models,
and `batching` joins requests and runs them. `writers` are models that write texts, which `openai`
asks.
"""
