"""Grafana dashboards, written as code: `make k8s` turns them into JSON.

`boards` says what is shown; `grafana` knows how Grafana wants it; `images` draws them for the docs,
from a mesh that it runs.
"""
