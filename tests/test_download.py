"""Published files are fetched once, however many processes ask for them."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from clsearch.data._download import fetch

CONTENT = b"published" * 1000


def test_a_file_that_several_ask_for_is_fetched_once(tmp_path: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(0.5)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/set.bin"
    md5 = hashlib.md5(CONTENT).hexdigest()
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(fetch, url, md5, tmp_path / "set") for _ in range(4)]:
                done.result()
        assert asked == ["/set.bin"]
        fetch(url, md5, tmp_path / "set")  # nobody was waited for: it is asked for again
        assert len(asked) == 2
    finally:
        server.shutdown()
        server.server_close()
    assert (tmp_path / "set" / "set.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
