// A client that mmesh did not generate: loads protos/ at run time, ingests, and searches.
// usage: node client.mjs ADDRESS PROTOS COLLECTION PICTURE; prints one line of JSON.
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, protos, collection, picture] = process.argv.slice(2);
const definition = loader.loadSync("mmesh/api/gateway/v1/gateway.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { RetrievalService } = grpc.loadPackageDefinition(definition).mmesh.api.gateway.v1;
const client = new RetrievalService(address, grpc.credentials.createInsecure());
const deadline = () => new Date(Date.now() + 20_000);

const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: deadline() }, (error, reply) =>
      error ? reject(error) : resolve(reply),
    ),
  );

const text = (words) => ({ parts: [{ text: words }] });
const image = (data) => ({ parts: [{ image: { data, media_type: "image/png" } }] });
const data = readFileSync(picture);

function ingest(candidates) {
  return new Promise((resolve, reject) => {
    const stream = client.Ingest({ deadline: deadline() });
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

await call("CreateCollection", { name: collection });
const ingested = await ingest([
  { id: "words", content: text("A grey kitten plays with wool."), attributes: { year: { integer_value: 2001 } } },
  { id: "picture", content: image(data) },
  { id: "broken", content: image(Buffer.from("not a picture")) },
]);
const find = (query, more) =>
  call("Search", { collection, query, token: ingested.token, limit: 3, ...more });
const byText = await find(text("a young cat"), { target: "MODALITY_TEXT" });
const byPicture = await find(image(data), { target: "MODALITY_IMAGE" });
const filtered = await find(text("a young cat"), {
  filter: { compare: { attribute: "year", operator: "OPERATOR_LESS", value: { integer_value: 2000 } } },
});
const failure = await call("Search", { collection: "nowhere", query: text("x") }).catch((error) => error);

console.log(
  JSON.stringify({
    stored: ingested.stored,
    rejected: ingested.rejected.map((one) => [one.id, one.problem.reason]),
    byText: byText.hits.map((hit) => [hit.id, hit.modality, hit.rank]),
    year: byText.hits[0].attributes.year.integer_value,
    byPicture: byPicture.hits.map((hit) => hit.id),
    pictureScore: byPicture.hits[0].retrieval_score,
    filtered: filtered.hits.length,
    coverage: byText.coverage,
    failure: [failure.code, failure.details, failure.metadata.get("grpc-status-details-bin").length],
  }),
);
client.close();
