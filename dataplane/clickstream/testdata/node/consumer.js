// A consumer of clicks as proto/aff/click/v1/README.md describes it, from the
// .proto alone: node consumer.js URL PROTO FILE
//
// FILE keeps what was made of the clicks, and the marks, together: it is
// replaced as a whole, which is this consumer's transaction.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { connect } from "@nats-io/transport-node";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import protobuf from "protobufjs";

const [url, proto, file] = process.argv.slice(2);
const root = await protobuf.load(proto);
const Batch = root.lookupType("aff.click.v1.Batch");
const Form = root.lookupEnum("aff.click.v1.AddressForm").values;
const options = { longs: BigInt, defaults: true, arrays: true };

// saved = {perAffiliate, perForm, gaps, ended, marks: {"<node>-<boot>": {high, missing}}}
let saved = { perAffiliate: {}, perForm: {}, gaps: [], ended: [], marks: {} };
try {
  saved = JSON.parse(readFileSync(file, "utf8"));
} catch (e) {
  if (e.code !== "ENOENT") throw e;
}

// A block of Snappy: https://github.com/google/snappy/blob/main/format_description.txt
function uncompress(block) {
  let at = 0;
  const little = (bytes) => {
    let n = 0;
    for (let i = 0; i < bytes; i++) n += block[at++] * 2 ** (8 * i);
    return n;
  };
  let size = 0;
  for (let shift = 0, more = true; more; shift += 7) {
    size += (block[at] & 0x7f) * 2 ** shift;
    more = block[at++] >= 0x80;
  }
  const out = new Uint8Array(size);
  for (let to = 0; at < block.length; ) {
    const tag = block[at++];
    if (tag % 4 === 0) {
      const length = 1 + (tag >> 2 < 60 ? tag >> 2 : little((tag >> 2) - 59));
      out.set(block.subarray(at, at + length), to);
      at += length;
      to += length;
      continue;
    }
    const length = tag % 4 === 1 ? 4 + ((tag >> 2) % 8) : 1 + (tag >> 2);
    const offset = tag % 4 === 1 ? (tag >> 5) * 256 + block[at++] : little(tag % 4 === 2 ? 2 : 4);
    for (let i = 0; i < length; i++, to++) out[to] = out[to - offset]; // they may overlap
  }
  return out;
}

// What was compressed belongs to the message like the rest.
function decode(data) {
  const b = Batch.decode(data);
  if (b.snappy.length === 0) return b;
  return Batch.decode(Buffer.concat([data, uncompress(b.snappy)]));
}

// How a click's address was made: a click may differ from its batch.
function formOf(b, c) {
  if (c.address.length === 0) return Form.ADDRESS_FORM_UNSPECIFIED;
  if (c.addressForm !== Form.ADDRESS_FORM_UNSPECIFIED) return c.addressForm;
  if (b.addressForm === Form.ADDRESS_FORM_HASHED && c.address.length !== 8) return Form.ADDRESS_FORM_TRUNCATED;
  return b.addressForm;
}

function handle(b) {
  const boot = b.boot.toString(16).padStart(16, "0");
  const first = Number(b.firstSequence); // below 2^53
  const mark = (saved.marks[`${b.node}-${boot}`] ??= { high: first - 1, missing: first > 1 ? [[1, first - 1]] : [] });
  b.clicks.forEach((c, i) => {
    const sequence = first + i;
    const hole = mark.missing.findIndex(([from, to]) => from <= sequence && sequence <= to);
    if (sequence <= mark.high && hole < 0) return; // a duplicate
    if (hole >= 0) {
      const [from, to] = mark.missing[hole];
      mark.missing.splice(hole, 1, ...[[from, sequence - 1], [sequence + 1, to]].filter(([a, z]) => a <= z));
    }
    const affiliate = c.affiliate ? new TextDecoder().decode(b.strings[c.affiliate]) : "";
    saved.perAffiliate[affiliate] = (saved.perAffiliate[affiliate] ?? 0) + 1;
    const form = formOf(b, c);
    saved.perForm[form] = (saved.perForm[form] ?? 0) + 1;
  });
  if (first > mark.high + 1) {
    mark.missing.push([mark.high + 1, first - 1]);
    saved.gaps.push(`${b.node} ${mark.high + 1} to ${first - 1}`);
  }
  mark.high = Math.max(mark.high, first - 1 + b.clicks.length);
  const ledger = b.ledger;
  const dropped = ledger.dropped.reduce((sum, d) => sum + d.clicks, 0n);
  if (ledger.answered !== ledger.recorded + dropped) throw new Error("the ledger does not close");
  if (ledger.final) saved.ended.push(b.node);
}

const nc = await connect({ servers: url });
await (await jetstreamManager(nc)).consumers.add("AFF_CLICKS", { durable_name: "node", ack_policy: AckPolicy.Explicit });
const consumer = await jetstream(nc).consumers.get("AFF_CLICKS", "node");
for (;;) {
  const messages = [];
  for await (const m of await consumer.fetch({ max_messages: 16, expires: 1000 })) {
    handle(Batch.toObject(decode(m.data), options));
    messages.push(m);
    if (m.info.pending === 0) break;
  }
  if (messages.length === 0) break;
  writeFileSync(file + ".new", JSON.stringify(saved));
  renameSync(file + ".new", file); // what was made of the clicks, and the marks
  messages.forEach((m) => m.ack());
  if (messages.at(-1).info.pending === 0) break;
}
await nc.drain();
