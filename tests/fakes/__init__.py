"""Stand-ins that play a real part's contract at the wire.

vllm/     one vLLM replica with LoRA on      serving.py  any ASGI app on a unix socket, in a thread
teacher.py  an OpenAI-compatible server that answers, and fails, as a test says
"""
