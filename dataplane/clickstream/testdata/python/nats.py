"""What the consumer of the README needs of the ordinary NATS client, and no more."""
import asyncio, json


class errors:
    class TimeoutError(asyncio.TimeoutError):
        pass


async def connect(url):
    host, port = url.removeprefix("nats://").split(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    await client.reader.readline()  # INFO
    client.writer.write(b'CONNECT {"verbose":false,"headers":true}\r\nSUB _INBOX.readme 1\r\n')
    return client


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def jetstream(self):
        return self

    async def pull_subscribe(self, subject, durable, stream):
        config = {"durable_name": durable, "ack_policy": "explicit", "filter_subject": subject}
        request = json.dumps({"stream_name": stream, "config": config, "action": "create"})
        self.publish(f"$JS.API.CONSUMER.INFO.{stream}.{durable}", b"", "_INBOX.readme")
        if "error" in json.loads((await self.next())[2]):
            self.publish(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}", request.encode(), "_INBOX.readme")
            created = json.loads((await self.next())[2])
            if "error" in created:
                raise RuntimeError(created)
        return Subscription(self, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}")

    def publish(self, subject, data, reply=""):
        self.writer.write(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")

    async def next(self):
        """The reply subject, the header and the body of the next message."""
        while True:
            verb, *words = (await self.reader.readline()).decode().split()
            if verb == "PING":
                self.writer.write(b"PONG\r\n")
            elif verb in ("MSG", "HMSG"):
                head = int(words[-2]) if verb == "HMSG" else 0
                data = (await self.reader.readexactly(int(words[-1]) + 2))[:-2]
                replies = words[2:-2] if verb == "HMSG" else words[2:-1]
                return "".join(replies), data[:head], data[head:]
            else:
                raise RuntimeError(f"NATS says {verb} {words}")


class Subscription:
    def __init__(self, client, subject):
        self.client, self.subject = client, subject

    async def fetch(self, batch, timeout):
        request = json.dumps({"batch": batch, "no_wait": True})
        self.client.publish(self.subject, request.encode(), "_INBOX.readme")
        messages = []
        while len(messages) < batch:
            reply, head, data = await self.client.next()
            if head.startswith(b"NATS/1.0 4"):  # there are no more
                break
            messages.append(Message(self.client, reply, data))
        if not messages:
            await asyncio.sleep(min(timeout, 0.02))
            raise errors.TimeoutError
        return messages


class Message:
    def __init__(self, client, reply, data):
        self.client, self.reply, self.data = client, reply, data

    async def ack(self):
        self.client.publish(self.reply, b"+ACK")
