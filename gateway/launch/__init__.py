"""Starts, watches and stops processes; knows nothing of requests.

stack.py       all of it in order: Valkey, replicas, gateway       processes.py  a child that is kept running
supervisor.py  the gateway: one listening socket, N workers        worker.py     one of them: uvicorn around the app
engines.py     vLLM replicas on unix sockets                       guardian.py   leaves nothing of a vLLM behind
"""
