#!/usr/bin/env python3
"""A Gristmill worker in Python, by docs/protocol.md: the other half of examples/collatz.rs.

    pip install pika
    # For another user, also set GRISTMILL_PASSWORD or GRISTMILL_PASSWORD_FILE.
    export GRISTMILL_BROKER=amqp://guest@localhost:5672
    cargo run --example collatz -- sink &
    python3 examples/worker.py &
    cargo run --example collatz -- producer submit collatz --limit 300000 --wait

It runs one task at a time, in the thread of the broker's connection. Start one for each core.
"""

import collections, json, math, os, random, re, secrets, signal, socket, sys, time, urllib.parse, uuid
import pika
from pika.exceptions import AuthenticationError, NackError, ProbableAuthenticationError

HEARTBEAT = 600  # seconds; longer than any task, because no heartbeats are sent while a task runs
PREFETCH = 4  # unacked messages of `tasks`, and as many of `again`
REPORT_AFTER = 1.0  # seconds after which a long batch reports its outcomes
RESULTS_BYTES, OUTPUT_BYTES, REASON_BYTES = 256 << 10, 1 << 20, 4 << 10
STOPPED_MAX = 100_000  # number of stopped jobs that are remembered
# The retry ladder, in milliseconds.
STEPS = [(600_000, "10m"), (60_000, "1m"), (10_000, "10s"), (1_000, "1s")]
DELAY_MAX = 86_400_000  # the longest wait of a task before its next try, in milliseconds
PAUSE_MAX = 1.0  # seconds between two tries to publish to a full queue


class Collatz:
    """A kind: made of a spec, called with a task.

    An exception is a failed try; Reject is a failure for good.
    """

    def __init__(self, spec):
        self.limit = int(spec["limit"])

    def __call__(self, task):
        if task["end"] > self.limit:
            raise Reject(f"the task ends at {task['end']}, beyond the limit {self.limit}")
        longest = (0, 0)  # its length, and where it starts
        for start in range(task["start"], task["end"]):
            length, number = 0, start
            while number != 1:
                number = 3 * number + 1 if number % 2 else number // 2
                length += 1
            if length > longest[0] or not longest[1]:
                longest = (length, start)
        return longest


KINDS = {"collatz": Collatz}  # add your own


class Reject(Exception):
    """This task can never succeed."""


class Malformed(Exception):
    """No program can process this message."""


class Worker:
    def __init__(self, parameters, lane="default"):
        parameters.heartbeat = HEARTBEAT
        self.lane, self.leaving, self.sent = lane, False, 0
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:63]
        self.id = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stopped = {}  # job -> the last round that is no longer needed
        self.waiting = collections.deque()  # deliveries not begun; bounded by the prefetch
        self.connection = pika.BlockingConnection(parameters)
        self.outlet = self.connection.channel()
        self.outlet.confirm_delivery()  # basic_publish now waits for the broker's answer

    def run(self):
        journal = self.connection.channel()
        journal.basic_qos(prefetch_count=100)
        journal.basic_consume("gristmill.journal", self.learn, arguments={"x-stream-offset": "first"})
        inlet = self.connection.channel()
        consumers = []
        for role, prefetch in [("tasks", PREFETCH), ("again", PREFETCH), ("suspect", 1)]:
            inlet.basic_qos(prefetch_count=prefetch)
            take = lambda *delivery, role=role: self.waiting.append((role, *delivery))
            consumers.append(inlet.basic_consume(f"gristmill.{self.lane}.{role}", take))
        print(f"{self.id} takes tasks of lane {self.lane}, kinds {', '.join(KINDS)}", file=sys.stderr)
        while not self.leaving:
            self.connection.process_data_events(time_limit=0 if self.waiting else 1)
            if self.waiting and not self.leaving:
                role, channel, method, properties, body = self.waiting.popleft()
                self.work(role, properties, body)
                channel.basic_ack(method.delivery_tag)  # all that follows from it is confirmed
        for consumer in consumers:
            inlet.basic_cancel(consumer)
        # Batches that have not begun go to other workers, at no cost.
        for role, channel, method, properties, body in self.waiting:
            self.pass_on("work", "again", properties, body)
            channel.basic_ack(method.delivery_tag)
        self.connection.close()

    def learn(self, channel, method, properties, body):
        """Records a fact of the journal."""
        channel.basic_ack(method.delivery_tag)
        if properties.type not in ("gristmill.stopped.v1", "gristmill.finished.v1"):
            return
        try:
            fact = json.loads(body)
            job, ended = fact["job"], int(fact["round"])
        except (ValueError, KeyError, TypeError):
            return  # readers of the journal skip unknown messages
        self.stopped[job] = max(ended, self.stopped.get(job, 0))
        if len(self.stopped) > STOPPED_MAX:
            self.stopped.pop(next(iter(self.stopped)))

    def is_stopped(self, batch):
        return batch["round"] <= self.stopped.get(batch["job"], -1)

    def work(self, role, properties, body):
        """Processes a message. When this returns, all messages that follow from it are confirmed."""
        try:
            batch = read_batch(properties, body)
            if self.is_stopped(batch):
                return
            if batch["kind"] not in KINDS:
                return self.pass_on("work", "retry.10s", properties, body)
            delay = count(properties, "gm-delay")
            if role == "again" and delay >= 1000:  # it must still wait
                step, rest = first_step(delay)
                return self.pass_on("work", f"retry.{step}", properties, body, {"gm-delay": rest})
            try:
                process = KINDS[batch["kind"]](batch["spec"])
            except Exception as error:
                raise Malformed(f"the spec does not fit kind {batch['kind']}: {error!r}")
        except Malformed as why:
            print(f"to the dead queue: {why}", file=sys.stderr)
            origin = f"gristmill.{self.lane}.{role}"
            return self.pass_on("dead", "dead", properties, body, {"gm-reason": clip(str(why)), "gm-origin": origin})
        self.run_tasks(process, batch, count(properties, "gm-attempt"), count(properties, "gm-loss"))

    def run_tasks(self, process, batch, failures, losses):
        report = Report(self, batch)
        timeout = (batch["policy"].get("task_timeout_ms") or math.inf) / 1000
        for index, task in enumerate(batch["tasks"], batch["first"]):
            self.connection.process_data_events(time_limit=0)  # facts of the journal
            if self.is_stopped(batch):
                return
            if self.leaving:
                rest = batch["tasks"][index - batch["first"] :]
                self.send_batch("again", batch, index, rest, failures, losses)
                break
            began = time.monotonic()
            try:
                output = process(task)
                size = len(json.dumps(output, allow_nan=False))
                if size > OUTPUT_BYTES:
                    raise Reject(f"its output takes {size} bytes, more than {OUTPUT_BYTES}")
                if time.monotonic() - began > timeout:
                    raise TimeoutError(f"it took longer than {timeout} s")
                report.done(index, output, size, task)
            except Exception as error:
                tries = failures + 1
                in_this_round = tries - batch.get("spent", 0)
                if isinstance(error, Reject) or in_this_round >= batch["policy"].get("max_attempts", 5):
                    report.failed(index, f"{type(error).__name__}: {error}", tries, losses, task)
                else:
                    delays = batch["policy"].get("retry_delays_ms") or [wait for wait, _ in reversed(STEPS)]
                    delay = delays[min(in_this_round, len(delays)) - 1]
                    step, rest = first_step(max(1000, math.ceil(delay / 1000) * 1000))
                    self.send_batch(f"retry.{step}", batch, index, [task], tries, losses, rest)
            if report.bytes >= RESULTS_BYTES or time.monotonic() - report.began >= REPORT_AFTER:
                report.send()
                report = Report(self, batch)
        report.send()

    def send_batch(self, queue, batch, first, tasks, failures, losses, delay=0):
        """Publishes tasks of a batch as a batch of their own."""
        part = batch | {"first": first, "count": len(tasks), "tasks": tasks}
        name = f"{batch['job']}/{first}+{len(tasks)}@{batch['round']}.{failures}"
        headers = {"gm-attempt": failures, "gm-loss": losses, "gm-delay": delay}
        headers = {header: times for header, times in headers.items() if times}
        self.send("work", queue, "gristmill.batch.v1", name, batch["job"], part, headers)

    def send(self, exchange, queue, form, name, job, body, headers=None):
        properties = pika.BasicProperties(
            type=form, message_id=name, correlation_id=job, app_id=self.id, timestamp=int(time.time()),
            content_type="application/json", headers=headers,
        )  # fmt: skip
        self.publish(exchange, queue, properties, json.dumps(body, allow_nan=False))

    def pass_on(self, exchange, queue, properties, body, more={}):
        """Publishes a message unchanged, without the headers and properties of the broker."""
        headers = properties.headers or {}
        headers = {name: headers[name] for name in headers if name.startswith("gm-") or name == "traceparent"}
        names = "type message_id correlation_id app_id timestamp content_type content_encoding".split()
        kept = {name: getattr(properties, name) for name in names}
        self.publish(exchange, queue, pika.BasicProperties(**kept, headers=headers | more), body)

    def publish(self, exchange, queue, properties, body):
        """Returns when the message is stored. Retries a full queue. A missing queue ends the worker."""
        properties.delivery_mode = 2
        key, pause = f"gristmill.{self.lane}.{queue}", 0.01
        while True:
            try:
                self.outlet.basic_publish(f"gristmill.{exchange}", key, body, properties, mandatory=True)
                return
            except NackError:
                self.connection.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(PAUSE_MAX, 2 * pause)


class Report:
    """Outcomes for one results message."""

    def __init__(self, worker, batch):
        self.worker, self.batch = worker, batch
        self.spans, self.failures, self.bytes, self.began = [], [], 0, time.monotonic()

    def done(self, index, output, size, task):
        if not self.spans or self.spans[-1]["first"] + self.spans[-1]["count"] != index:
            self.spans.append({"first": index, "count": 0, "outputs": []})
        self.spans[-1]["count"] += 1
        self.spans[-1]["outputs"].append(output)
        self.bytes += size
        if self.batch["policy"].get("keep") == "tasks":  # the task travels with its output
            self.spans[-1].setdefault("tasks", []).append(task)
            self.bytes += len(json.dumps(task))

    def failed(self, index, reason, attempts, losses, task):
        why = clip(reason)
        failure = {"index": index, "reason": why, "attempts": attempts, "losses": losses, "task": task}
        self.failures.append(failure)
        self.bytes += len(json.dumps(failure))

    def send(self):
        if not self.spans and not self.failures:
            return
        worker, job = self.worker, self.batch["job"]
        worker.sent += 1
        busy = int((time.monotonic() - self.began) * 1_000_000)
        body = {"job": job, "round": self.batch["round"], "worker": worker.id, "busy_us": busy}
        body |= {"done": self.spans, "failed": self.failures}
        worker.send("results", "results", "gristmill.results.v1", f"{job}/{worker.id}#{worker.sent}", job, body)


def read_batch(properties, body):
    if properties.type != "gristmill.batch.v1":
        raise Malformed(f"the message's type is {properties.type!r}, not 'gristmill.batch.v1'")
    if properties.content_encoding:
        raise Malformed(f"unknown content-encoding {properties.content_encoding!r}")
    try:
        batch = json.loads(body.decode(), parse_constant=refuse, parse_float=finite)
        policy, _ = batch["policy"], batch["spec"]
        uuid.UUID(batch["job"])
        numbers = [batch["round"], batch["first"], batch["count"], policy.get("max_attempts", 5)]
        numbers.append(policy.get("task_timeout_ms") or 0)
        numbers += policy.get("retry_delays_ms", [])
        fits = all(type(number) is int and number >= 0 for number in numbers)
        fits = fits and isinstance(batch["kind"], str) and isinstance(batch["tasks"], list)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"the body is no batch: {error!r}")
    if not fits or len(batch["tasks"]) != batch["count"]:
        raise Malformed("the body is no batch: a number, its kind or its tasks do not fit")
    return batch


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def finite(text):
    return float(text) if math.isfinite(float(text)) else refuse(text)


def first_step(delay):
    """Returns the longest step within `delay` milliseconds, or else the shortest, and the rest."""
    delay = min(delay, DELAY_MAX)
    wait, step = next((wait, step) for wait, step in STEPS if wait <= delay)
    return step, delay - wait


def count(properties, header):
    value = (properties.headers or {}).get(header)
    # pika has a type of its own for 64-bit numbers, which is a subclass of int.
    return max(0, int(value)) if isinstance(value, int) and not isinstance(value, bool) else 0


def clip(reason):
    return reason.encode(errors="replace")[:REASON_BYTES].decode(errors="ignore")


def access(url):
    """Returns the connection parameters, as Gristmill's own programs read them, and whether a
    password was given."""
    password = password_beside_the_url()
    place = urllib.parse.urlsplit(url)
    user, _, host = place.netloc.rpartition("@")
    name, in_the_url, _ = user.partition(":")
    if in_the_url and password:
        sys.exit("there are two passwords, one of them in GRISTMILL_BROKER (hint: leave that one out, amqp://USER@HOST)")
    if not in_the_url:  # without any password, the default of RabbitMQ's first user
        user = f"{name or 'guest'}:{urllib.parse.quote(password or 'guest', safe='')}"
    return pika.URLParameters(place._replace(netloc=f"{user}@{host}").geturl()), bool(in_the_url or password)


def password_beside_the_url():
    password, path = os.environ.get("GRISTMILL_PASSWORD"), os.environ.get("GRISTMILL_PASSWORD_FILE")
    if not path:
        return password
    if password:
        sys.exit("GRISTMILL_PASSWORD and GRISTMILL_PASSWORD_FILE are both set (hint: unset one)")
    try:
        with open(path) as file:
            password = file.read().rstrip("\r\n")
    except (OSError, ValueError) as error:
        sys.exit(f"GRISTMILL_PASSWORD_FILE: cannot read {path}: {error}")
    return password or sys.exit(f"GRISTMILL_PASSWORD_FILE: {path} is empty")


def main():
    if len(sys.argv) > 2:
        sys.exit(f"usage: {sys.argv[0]} [LANE]   (the broker's URL is in GRISTMILL_BROKER, the lane may be in GRISTMILL_LANE)")
    parameters, has_password = access(os.environ.get("GRISTMILL_BROKER", "amqp://guest@localhost:5672"))
    lane = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GRISTMILL_LANE", "default")
    try:
        worker = Worker(parameters, lane)
    except (AuthenticationError, ProbableAuthenticationError) as refused:
        hint = "set GRISTMILL_PASSWORD, or GRISTMILL_PASSWORD_FILE for a file with it alone"
        why = "" if has_password else f"; no password was given for the user {parameters.credentials.username} (hint: {hint})"
        sys.exit(f"the broker at {parameters.host}:{parameters.port} refuses: {refused}{why}")

    def leave(*_):
        worker.leaving = True

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    worker.run()


if __name__ == "__main__":
    main()
