"""A small typed client for programs of this box: ``meshmoe.connect()`` and ``meshmoe.connect_async()``.

    with meshmoe.connect() as mesh:
        print(mesh.complete("The mesh is", max_tokens=32).text)
        for piece in mesh.stream_chat("What is a mesh?"):
            print(piece, end="", flush=True)

The asynchronous one has the same methods, to be awaited, under trio as well as under asyncio. Whoever has ``openai``
already needs neither: the node speaks its API.
"""

from meshmoe.api.error_reading import NoNodeError
from meshmoe.client.answer import Answer, Message, Options
from meshmoe.client.asynchronous import AsyncMesh, connect_async
from meshmoe.client.synchronous import Mesh, connect

__all__ = ["Answer", "AsyncMesh", "Mesh", "Message", "NoNodeError", "Options", "connect", "connect_async"]
