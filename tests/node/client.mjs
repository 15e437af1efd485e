// A client that mmesh did not generate: loads protos/ at run time, ingests, searches, reads errors.
// usage: node client.mjs ADDRESS PROTOS COLLECTION PICTURE; prints one line of JSON.
// The parts between `// [name]` and `// [end]` are shown in docs/how-to/write-a-client.md.
import { readFileSync } from "node:fs";

const [address, protos, collection, picture] = process.argv.slice(2);

// [connect]
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const definition = loader.loadSync("mmesh/api/gateway/v1/gateway.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { RetrievalService } = grpc.loadPackageDefinition(definition).mmesh.api.gateway.v1;
const client = new RetrievalService(address, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": 64 * 2 ** 20, // answers with pictures exceed gRPC's 4 MiB
});
// [end]

// [errors]
const google = protobuf.parse(
  `syntax = "proto3"; package google.rpc;
   message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
   message Any { string type_url = 1; bytes value = 2; }
   message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
   message RetryInfo { Duration retry_delay = 1; }
   message Duration { int64 seconds = 1; int32 nanos = 2; }
   message BadRequest { repeated FieldViolation field_violations = 1; }
   message FieldViolation { string field = 1; string description = 2; }`,
  { keepCase: true },
).root;
const decode = (type, bytes) => google.lookupType(type).decode(bytes);

function problemOf(error) {
  const problem = { reason: "", metadata: {}, fields: [], retryMs: undefined };
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const { details } = bytes ? decode("google.rpc.Status", bytes) : { details: [] };
  for (const { type_url, value } of details) {
    const type = type_url.split("/").pop(); // "type.googleapis.com/google.rpc.ErrorInfo"
    if (type === "google.rpc.ErrorInfo") {
      const { reason, metadata } = decode(type, value);
      Object.assign(problem, { reason, metadata });
    } else if (type === "google.rpc.RetryInfo") {
      const { seconds, nanos } = decode(type, value).retry_delay;
      problem.retryMs = Number(seconds) * 1000 + nanos / 1e6;
    } else if (type === "google.rpc.BadRequest") {
      problem.fields = decode(type, value).field_violations.map((one) => one.field);
    }
  }
  if (!bytes && error.code === grpc.status.UNAVAILABLE) problem.retryMs = 500; // not reached at all
  return problem;
}
// [end]

// [call]
function callOnce(method, request, deadline, id) {
  const metadata = new grpc.Metadata();
  metadata.set("mmesh-request-id", id);
  return new Promise((resolve, reject) =>
    client[method](request, metadata, { deadline }, (error, reply) =>
      error ? reject(error) : resolve(reply),
    ),
  );
}

// For calls that are safe to repeat: the same request, so the same `request_id` in it, every time.
async function call(method, request, { seconds = 20, id = randomUUID() } = {}) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    try {
      return await callOnce(method, request, deadline, id);
    } catch (error) {
      const pause = problemOf(error).retryMs * (0.5 + Math.random());
      if (!(Date.now() + pause < deadline)) throw error; // too late, or no pause is given
      await sleep(pause);
    }
  }
}
// [end]

// [content]
const text = (words) => ({ parts: [{ text: words }] });
const image = (data) => ({ parts: [{ image: { data, media_type: "image/png" } }] });
// [end]

// [ingest]
function ingest(candidates) {
  return new Promise((resolve, reject) => {
    const stream = client.Ingest(); // no deadline: it would end the whole stream
    const seen = { stored: 0, rejected: [], token: "" };
    stream.on("data", (event) => {
      if (event.opened) stream.write({ batch: { sequence: 1, candidates } });
      if (event.opened) stream.end();
      if (event.rejected) seen.rejected.push(...event.rejected.candidates);
      if (event.ack) seen.stored += event.ack.stored;
      if (event.ack) seen.token = event.ack.token;
    });
    stream.on("error", reject);
    stream.on("end", () => resolve(seen));
    stream.write({ open: { collection, ingest_id: randomUUID() } });
  });
}
// [end]

const data = readFileSync(picture);
await call("CreateCollection", { name: collection });
const ingested = await ingest([
  { id: "picture", content: image(data) },
  { id: "broken", content: image(Buffer.from("not a picture")) },
]);

// [write]
const write = {
  collection,
  request_id: randomUUID(), // makes the write safe to repeat
  candidates: [
    {
      id: "words",
      content: text("A grey kitten plays with wool."),
      attributes: { year: { integer_value: 2001 } },
    },
  ],
};
const { token } = await call("UpsertCandidates", write);
const byText = await call("Search", {
  collection,
  query: text("a young cat"),
  target: "MODALITY_TEXT",
  limit: 3,
  token, // the search sees the write
});
// [end]
const again = await call("UpsertCandidates", write);
const reused = await call("DeleteCandidates", { ...write, ids: ["words"] }).catch((error) => error);
const { collection: changed } = await call("UpdateCollection", {
  name: collection,
  settings: { limits: { max_limit: 50 } },
  update_mask: { paths: ["limits.max_limit"] },
  request_id: randomUUID(),
});
const status = await call("GetStatus", {});

const find = (query, more) => call("Search", { collection, query, token, limit: 3, ...more });
const byPicture = await find(image(data), {
  target: "MODALITY_IMAGE",
  rerank: { candidates: 1, max_duration: { seconds: 1, nanos: 500_000_000 } },
});
const filtered = await find(text("a young cat"), {
  filter: { compare: { attribute: "year", operator: "OPERATOR_LESS", value: { integer_value: 2000 } } },
});
const followed = await call("Search", { collection, query: text("x") }, { id: "from-node" });
const failureOf = (request) => call("Search", request).catch((error) => error);
const nowhere = await failureOf({ collection: "nowhere", query: text("x") });
const future = { collection, query: text("x"), token: token.replace(/\d+$/, "999999") };
const unknownToken = await callOnce("Search", future, Date.now() + 1500, "unknownToken").catch((error) => error);
const wrong = await failureOf({ collection, query: text("x"), limit: 5000 });
const unreached = new RetrievalService("127.0.0.1:1", grpc.credentials.createInsecure());
const away = await new Promise((resolve) => unreached.GetStatus({}, resolve));

console.log(
  JSON.stringify({
    stored: ingested.stored,
    rejected: ingested.rejected.map((one) => [one.id, one.problem.reason]),
    byText: byText.hits.map((hit) => [hit.id, hit.modality, hit.rank]),
    year: byText.hits[0].attributes.year.integer_value,
    isRepeated: again.token === token,
    reused: [reused.code, problemOf(reused).reason],
    maxLimit: changed.settings.limits.max_limit,
    index: status.services
      .filter((one) => one.role === "SERVICE_ROLE_INDEX")
      .map((one) => [one.state, one.shard, one.shard_count, one.replica]),
    byPicture: byPicture.hits.map((hit) => hit.id),
    pictureScore: byPicture.hits[0].retrieval_score,
    filtered: filtered.hits.length,
    coverage: byText.coverage,
    requestId: followed.receipt.request_id,
    nowhere: [nowhere.code, problemOf(nowhere)],
    unknownToken: [unknownToken.code, problemOf(unknownToken)],
    wrong: [wrong.code, problemOf(wrong)],
    away: [away.code, problemOf(away)],
  }),
);
client.close();
