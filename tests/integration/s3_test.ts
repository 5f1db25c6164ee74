/** S3 objects over a real server: what is put is got, once; and each way in which a service can fail, told apart. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { S3Objects } from "../../src/cache/s3.ts";
import { S3Error, type S3Reason } from "../../src/cache/s3_error.ts";
import { sha256File } from "../../src/host/files.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { BUCKET, type Fault, skipS3, startS3, type TestS3 } from "../support/s3.ts";
import { startScript } from "../support/subprocess.ts";

const MIB = 1_048_576;
const skip = skipS3;
const NEVER = new AbortController().signal;
const NEW = { isReplacing: false, signal: NEVER }, OVER = { isReplacing: true, signal: NEVER };

async function started(t: TestContext): Promise<{ s3: TestS3; objects: S3Objects; at: (name: string) => string }> {
  const s3 = await startS3(t), directory = temporaryDirectory(t);
  return { s3, objects: open(t, s3), at: (name) => path.join(directory, name) };
}

function open(t: TestContext, s3: Pick<TestS3, "endpoint">, bucket = BUCKET): S3Objects {
  const objects = new S3Objects({ bucket, region: "us-east-1", endpoint: s3.endpoint });
  t.after(() => objects[Symbol.dispose]());
  return objects;
}

/** Writes a file and puts it; returns what a download of it is told. */
async function stored(objects: S3Objects, file: string, bytes: Uint8Array): Promise<{ size: number; sha256: string; signal: AbortSignal }> {
  writeFileSync(file, bytes);
  const sha256 = await sha256File(file);
  assert.equal(await objects.uploadFile("blob", file, { sha256, ...NEW }), true);
  return { size: bytes.length, sha256, signal: NEVER };
}

const failsWith = (reason: S3Reason) => (error: unknown) => {
  assert.ok(error instanceof S3Error, String(error));
  assert.equal(error.reason, reason, error.message);
  assert.match(error.message, /^Cannot \w+ s3:\/\/\S+: ./);
  return true;
};

test("S3Objects: texts are put once, replaced when asked, and got back", { skip }, async (t) => {
  const { objects } = await started(t);
  assert.equal(await objects.getText("a/b.json", 100, NEVER), undefined);
  assert.equal(await objects.has("a/b.json", NEVER), false);
  assert.equal(await objects.putText("a/b.json", "één", NEW), true);
  assert.equal(await objects.putText("a/b.json", "two", NEW), false);
  assert.deepEqual([await objects.has("a/b.json", NEVER), await objects.getText("a/b.json", 100, NEVER)], [true, "één"]);
  assert.equal(await objects.putText("a/b.json", "three", OVER), true);
  assert.equal(await objects.getText("a/b.json", 100, NEVER), "three");
  await assert.rejects(objects.getText("a/b.json", 4, NEVER), failsWith("damaged"));
});

test("S3Objects: of many that put one object at once, one does", { skip }, async (t) => {
  const { objects } = await started(t);
  const puts = await Promise.all(Array.from({ length: 8 }, (_, index) => objects.putText("race", `${index}`, NEW)));
  assert.equal(puts.filter(Boolean).length, 1, puts.join());
  assert.equal(await objects.getText("race", 10, NEVER), `${puts.indexOf(true)}`);
});

test("S3Objects: files are packed on the way there, and the same when they come back", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  const bytes = Buffer.alloc(3 * MIB, "the same again and again ");
  const whole = await stored(objects, at("in"), bytes);
  assert.deepEqual(s3.objects(), ["blob"]);
  assert.equal(s3.requests.filter((request) => request.startsWith("PUT")).length, 1);
  assert.equal(await objects.downloadFile("blob", at("out"), whole), true);
  assert.ok(readFileSync(at("out")).equals(bytes));
  assert.equal(await objects.downloadFile("other", at("none"), whole), false);
  assert.equal(existsSync(at("none")), false);
});

test("S3Objects: a big file goes in parts, and only once", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  const bytes = randomBytes(20 * MIB); // Nothing to pack: three parts.
  const whole = await stored(objects, at("in"), bytes);
  assert.deepEqual(s3.requests.filter((request) => !request.startsWith("HEAD")), [
    "POST blob begin",
    "PUT blob",
    "PUT blob",
    "PUT blob",
    "POST blob",
  ]);
  await objects.downloadFile("blob", at("out"), whole);
  assert.ok(readFileSync(at("out")).equals(bytes));
  assert.equal(await objects.uploadFile("blob", at("in"), { sha256: await sha256File(at("in")), ...NEW }), false);
  assert.equal(s3.requests.at(-1), "DELETE blob", "the parts that were sent are taken back");
  assert.deepEqual(s3.objects(), ["blob"]);
});

test("S3Objects: a file that is not what it should be is not put, small or big", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  for (const size of [1000, 20 * MIB]) {
    writeFileSync(at("in"), randomBytes(size));
    await assert.rejects(objects.uploadFile("blob", at("in"), { sha256: "0".repeat(64), ...NEW }), failsWith("local"));
  }
  assert.deepEqual(s3.objects(), []);
  await assert.rejects(objects.uploadFile("blob", at("missing"), { sha256: "0".repeat(64), ...NEW }), S3Error);
});

test("S3Objects: no more is unpacked than was promised", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  const whole = await stored(objects, at("in"), Buffer.alloc(64 * MIB)); // 6 KB when it is packed.
  await assert.rejects(objects.downloadFile("blob", at("out"), { ...whole, size: MIB }), failsWith("damaged"));
  assert.ok(readFileSync(at("out")).length <= MIB);
  assert.deepEqual(s3.objects(), ["blob"]);
});

const at = (kind: "cut" | "stall" | "truncate" | "corrupt", atByte: number): Fault => ({ kind, atByte });
const stall = (atByte: number) => at("stall", atByte);
const answer = (status: number, code: string): Fault => ({ kind: "answer", status, code });
const FAULTS: ReadonlyArray<readonly [name: string, Fault, S3Reason]> = [
  ["403", answer(403, "AccessDenied"), "forbidden"],
  ["401", answer(401, "Unauthorized"), "forbidden"],
  ["500", answer(500, "InternalError"), "service"],
  ["503", answer(503, "SlowDown"), "service"],
  ["no bucket", answer(404, "NoSuchBucket"), "no-bucket"],
  ["a reset", { kind: "reset" }, "unreachable"],
  ["a connection cut half-way", at("cut", 300_000), "cut-off"],
  ["a body that ends half-way", at("truncate", 300_000), "damaged"],
  ["a corrupted body", at("corrupt", 300_000), "damaged"],
  ["a corrupted beginning", at("corrupt", 0), "damaged"],
];
for (const [name, fault, reason] of FAULTS) {
  test(`S3Objects: a download that meets ${name} fails as ${reason}`, { skip }, async (t) => {
    const { s3, objects, at } = await started(t);
    const whole = await stored(objects, at("in"), randomBytes(MIB));
    s3.inject(({ method }) => method === "GET" ? fault : undefined);
    await assert.rejects(objects.downloadFile("blob", at("out"), whole), failsWith(reason));
  });
}

test("S3Objects: 404 is no failure, and one 500 is tried again", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  const whole = await stored(objects, at("in"), randomBytes(1000));
  s3.inject(() => answer(404, "NoSuchKey"));
  assert.equal(await objects.getText("blob", 100, NEVER), undefined);
  assert.equal(await objects.downloadFile("blob", at("none"), whole), false);
  let left = 1;
  s3.inject(() => left-- > 0 ? answer(500, "InternalError") : undefined);
  assert.equal(await objects.downloadFile("blob", at("out"), whole), true);
});

test("S3Objects: uploads that the service refuses or loses leave no object", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  writeFileSync(at("small"), randomBytes(1000));
  writeFileSync(at("big"), randomBytes(20 * MIB));
  for (
    const [fault, reason] of [[answer(403, "AccessDenied"), "forbidden"], [answer(500, "InternalError"), "service"], [
      { kind: "reset" },
      "unreachable",
    ]] as const
  ) {
    for (const file of ["small", "big"]) {
      let count = 0;
      s3.inject(({ method }) => method === "PUT" && ++count > (file === "big" ? 1 : 0) ? fault : undefined);
      await assert.rejects(objects.uploadFile("blob", at(file), { sha256: await sha256File(at(file)), ...NEW }), failsWith(reason));
    }
    await assert.rejects(objects.putText("text", "x", NEW), failsWith(reason));
  }
  s3.inject(() => undefined);
  assert.deepEqual([s3.objects(), await objects.has("blob", NEVER)], [[], false]);
});

test("S3Objects: an abort ends a transfer that hangs, with its reason", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  const whole = await stored(objects, at("in"), randomBytes(MIB));
  writeFileSync(at("big"), randomBytes(20 * MIB));
  const sha256 = await sha256File(at("big"));
  const hangs: ReadonlyArray<readonly [Fault, string, (signal: AbortSignal) => Promise<unknown>]> = [
    [{ kind: "hang" }, "GET", (signal) => objects.getText("blob", 100, signal)],
    [stall(300_000), "GET", (signal) => objects.downloadFile("blob", at(`out${s3.requests.length}`), { ...whole, signal })],
    [{ kind: "hang" }, "HEAD", (signal) => objects.has("blob", signal)],
    [{ kind: "hang" }, "PUT", (signal) => objects.uploadFile("other", at("big"), { sha256, isReplacing: false, signal })],
  ];
  for (const [fault, faulty, call] of hangs) {
    const controller = new AbortController(), reason = new Error("enough");
    s3.inject(({ method }) => {
      if (method !== faulty) return undefined;
      setTimeout(() => controller.abort(reason), 50);
      return fault;
    });
    await assert.rejects(call(controller.signal), (error) => error === reason);
  }
  await assert.rejects(objects.has("blob", AbortSignal.abort(new Error("before"))), /before/);
});

test("S3Objects: a bucket that is not there, a server that is not there, a wrong secret", { skip }, async (t) => {
  const { s3, objects, at } = await started(t);
  writeFileSync(at("in"), "x");
  const sha256 = await sha256File(at("in"));
  const wrong = open(t, s3, "no-such-bucket");
  await assert.rejects(wrong.getText("a", 10, NEVER), failsWith("no-bucket"));
  await assert.rejects(wrong.uploadFile("a", at("in"), { sha256, ...NEW }), failsWith("no-bucket"));
  process.env["AWS_SECRET_ACCESS_KEY"] = "another";
  await assert.rejects(open(t, s3).getText("a", 10, NEVER), failsWith("forbidden"));
  process.env["AWS_ACCESS_KEY_ID"] = "nobody";
  await assert.rejects(open(t, s3).putText("a", "x", NEW), failsWith("forbidden"));
  await s3.stop();
  await assert.rejects(objects.getText("a", 10, NEVER), failsWith("unreachable"));
  await assert.rejects(open(t, { endpoint: "http://127.0.0.1:1" }).getText("a", 10, NEVER), failsWith("unreachable"));
});

test("S3Objects: no credentials at all are told as that", { skip }, async (t) => {
  const { s3 } = await started(t);
  const end = await startScript(t, "s3_get.ts", [s3.endpoint, BUCKET], {
    AWS_ACCESS_KEY_ID: "",
    AWS_SECRET_ACCESS_KEY: "",
    HOME: "/nonexistent",
  }).ended;
  assert.equal(end.stdout, "failed: no-credentials\n", end.stderr);
});

test("S3Objects: a clock that is an hour wrong is made up for", { skip }, async (t) => {
  const { s3, objects } = await started(t);
  await objects.putText("text", "hello", NEW);
  for (const hours of ["1", "-1"]) {
    const end = await startScript(t, "s3_get.ts", [s3.endpoint, BUCKET, hours]).ended;
    assert.equal(end.stdout, "got hello\n", end.stderr);
  }
});

noLeftovers();
