"""TLS in front of a plain HTTP service: tls.py CERTIFICATE URL. Makes the certificate and its key in one file, prints
the URL it listens at, and ends when its input does."""

import asyncio
import os
import ssl
import subprocess
import sys

certificate, target = sys.argv[1:]
host, port = target.removeprefix("http://").split(":")
subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    + ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    + ["-keyout", certificate, "-out", certificate + ".crt"],
    check=True,
    stderr=subprocess.DEVNULL,
)
with open(certificate + ".crt") as crt, open(certificate, "a") as both:
    both.write(crt.read())
os.remove(certificate + ".crt")


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    writer.close()


async def connected(reader, writer):
    to_reader, to_writer = await asyncio.open_connection(host, int(port))
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    print(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
