/** Download: a release from a real HTTP server, whole, broken in every way, and offline. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { zstdCompressSync } from "node:zlib";
import { AssetError, Scheduler, type SchedulerConfig } from "../../src/mod.ts";
import { openAssets } from "../../src/images/assets.ts";
import { downloadAssets, type DownloadOptions } from "../../src/images/download.ts";
import { packRelease } from "../../src/images/release.ts";
import { verifyAssets } from "../../src/images/verify.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { manifestOf, smallFiles, writeImages } from "../unit/images/support.ts";

type Answer = { readonly status?: number; readonly body: Uint8Array; readonly cutAt?: number };

/** A release server; `answers` may be changed while it runs, `asked` lists what was asked for. */
async function release(t: TestContext, mark = "") {
  const files = smallFiles(mark);
  const answers = new Map<string, Answer>();
  answers.set("/v0.1.0/x86_64/manifest.json", { body: Buffer.from(JSON.stringify(manifestOf(files))) });
  for (const [name, text] of Object.entries(files)) {
    answers.set(`/v0.1.0/x86_64/${name}.zst`, { body: zstdCompressSync(Buffer.from(text)) });
  }
  const asked: string[] = [];
  const server: Server = createServer((request, response) => {
    asked.push(request.url ?? "");
    const answer: Answer = answers.get(request.url ?? "") ?? { status: 404, body: Buffer.from("no such file") };
    response.writeHead(answer.status ?? 200, { "content-length": answer.body.length });
    if (answer.cutAt === undefined) return void response.end(answer.body);
    response.write(answer.body.slice(0, answer.cutAt), () => response.socket?.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => new Promise((resolve) => server.close(resolve)));
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const directory = temporaryDirectory(t);
  const options: DownloadOptions = {
    version: "0.1.0",
    arch: "x86_64",
    imagesDir: path.join(directory, "images", "x86_64"),
    cacheDir: path.join(directory, "cache"),
    env: { EXEC_SANDBOX_ASSET_URL: baseUrl },
  };
  return { files, answers, asked, options };
}

const KERNEL = "/v0.1.0/x86_64/vmlinux-sbx.zst";

/** Rejects with an `AssetError` that contains all `parts`; nothing is published and nothing half is left. */
async function refused(options: DownloadOptions, ...parts: string[]): Promise<void> {
  await assert.rejects(downloadAssets(options), (error) => {
    assert.ok(error instanceof AssetError, String(error));
    for (const part of parts) assert.ok(error.message.includes(part), `"${error.message}" must contain "${part}"`);
    return true;
  });
  assert.ok(!existsSync(options.imagesDir));
  const downloads = path.join(options.cacheDir, "downloads");
  if (existsSync(downloads)) assert.deepEqual(readdirSync(downloads).filter((name) => name.endsWith(".part") || name === "lock"), []);
}

test("a release is downloaded, verified and published, with progress", async (t) => {
  const { files, options } = await release(t);
  const seen: Array<number | undefined> = [];
  await downloadAssets({ ...options, onProgress: ({ percent }) => seen.push(percent) });
  await verifyAssets(options.imagesDir);
  const { kernel, version } = await openAssets(options.imagesDir, { arch: "x86_64" });
  assert.equal(readFileSync(kernel.path, "utf8"), files["vmlinux-sbx"]);
  assert.equal(version, "0.1.0");
  assert.ok(seen.some((percent) => percent === 100));
  assert.ok(!existsSync(path.join(options.cacheDir, "downloads")));
});

test("what packRelease writes is what a download reads", async (t) => {
  const { answers, options } = await release(t);
  const parent = temporaryDirectory(t);
  const images = path.join(parent, "images");
  const files = writeImages(images, smallFiles("packed"));
  const place = await packRelease(images, path.join(parent, "release"), { level: 3 });
  assert.equal(place, path.join(parent, "release", "v0.1.0", "x86_64"));
  answers.clear();
  for (const name of readdirSync(place)) answers.set(`/v0.1.0/x86_64/${name}`, { body: readFileSync(path.join(place, name)) });
  await downloadAssets(options);
  await verifyAssets(options.imagesDir);
  assert.equal(readFileSync((await openAssets(options.imagesDir)).kernel.path, "utf8"), files["vmlinux-sbx"]);
  await assert.rejects(packRelease(images, path.join(parent, "release"), { level: 3 }), /EEXIST|exist/);
  assert.deepEqual(readdirSync(path.join(parent, "release", "v0.1.0")), ["x86_64"]);
});

test("damaged images are not packed", async (t) => {
  const parent = temporaryDirectory(t);
  const images = path.join(parent, "images");
  const files = writeImages(images);
  writeFileSync(path.join(images, "qemu-sbx"), files["qemu-sbx"]!.replace("c", "C"));
  await assert.rejects(packRelease(images, path.join(parent, "release")), AssetError);
  assert.ok(!existsSync(path.join(parent, "release")));
});

test("what is already right is not fetched again; what is damaged is", async (t) => {
  const { files, options, asked } = await release(t);
  await downloadAssets(options);
  asked.length = 0;
  await downloadAssets(options);
  assert.deepEqual(asked, ["/v0.1.0/x86_64/manifest.json"]);
  const { kernel } = await openAssets(options.imagesDir);
  rmSync(kernel.path);
  writeFileSync(kernel.path, files["vmlinux-sbx"]!.replace("c", "C"));
  await downloadAssets(options);
  assert.ok(asked.includes(KERNEL));
  await verifyAssets(options.imagesDir);
});

test("a missing file says its address and the answer", async (t) => {
  const { answers, options } = await release(t);
  answers.delete(KERNEL);
  await refused(options, KERNEL, "404");
});

test("a missing release says the address of its manifest", async (t) => {
  const { options } = await release(t);
  await refused({ ...options, env: { ...options.env, EXEC_SANDBOX_ASSET_VERSION: "9.9.9" } }, "/v9.9.9/x86_64/manifest.json", "404");
});

test("a connection that breaks in the middle is an error, and what had arrived whole is kept for the next attempt", async (t) => {
  const { answers, asked, options } = await release(t);
  const names = [...answers.keys()];
  const last = names.at(-1)!, whole = answers.get(last)!;
  answers.set(last, { ...whole, cutAt: 10 });
  await refused(options, last);
  answers.set(last, whole);
  asked.length = 0;
  await downloadAssets(options);
  assert.deepEqual(asked, ["/v0.1.0/x86_64/manifest.json", last]);
});

test("other content of the right size is refused with both hashes", async (t) => {
  const { files, answers, options } = await release(t);
  const wrong = files["vmlinux-sbx"]!.replace("c", "C");
  answers.set(KERNEL, { body: zstdCompressSync(Buffer.from(wrong)) });
  await refused(options, "SHA-256", manifestOf(files).files["vmlinux-sbx"]!.sha256);
});

test("content that is shorter, longer, truncated or not compressed is refused", async (t) => {
  const { files, answers, options } = await release(t);
  const text = files["vmlinux-sbx"]!, size = String(text.length);
  const packed = zstdCompressSync(Buffer.from(text));
  answers.set(KERNEL, { body: zstdCompressSync(Buffer.from(text.slice(1))) });
  await refused(options, KERNEL, size);
  answers.set(KERNEL, { body: zstdCompressSync(Buffer.from(text + "x")) });
  await refused(options, KERNEL, size);
  answers.set(KERNEL, { body: packed.subarray(0, packed.length - 5) });
  await refused(options, KERNEL);
  answers.set(KERNEL, { body: Buffer.from(text) });
  await refused(options, KERNEL);
  answers.set(KERNEL, { body: Buffer.alloc(0) });
  await refused(options, KERNEL);
});

test("a file that unpacks to far more than it may is stopped", async (t) => {
  const { answers, options } = await release(t);
  answers.set(KERNEL, { body: zstdCompressSync(Buffer.alloc(64 << 20)) });
  await refused(options, KERNEL, "got more");
});

test("a manifest of another architecture, or none at all, is refused", async (t) => {
  const { files, answers, options } = await release(t);
  const url = "/v0.1.0/x86_64/manifest.json";
  answers.set(url, { body: Buffer.from(JSON.stringify({ ...manifestOf(files), arch: "aarch64" })) });
  await refused(options, "aarch64");
  answers.set(url, { body: Buffer.from("<html>captive portal</html>") });
  await refused(options, url);
});

test("a failed download leaves the published images as they were", async (t) => {
  const { files, answers, options } = await release(t);
  await downloadAssets(options);
  answers.set("/v0.1.0/x86_64/manifest.json", { body: Buffer.from(JSON.stringify(manifestOf(smallFiles("newer")))) });
  await assert.rejects(downloadAssets(options), AssetError);
  assert.equal(readFileSync((await openAssets(options.imagesDir)).kernel.path, "utf8"), files["vmlinux-sbx"]);
});

test("offline and without an address it fails at once and asks nobody", async (t) => {
  const { options, asked } = await release(t);
  await refused({ ...options, env: { ...options.env, EXEC_SANDBOX_OFFLINE: "1" } }, "EXEC_SANDBOX_OFFLINE");
  await refused({ ...options, isOffline: true }, "EXEC_SANDBOX_OFFLINE");
  await refused({ ...options, env: {} }, "EXEC_SANDBOX_ASSET_URL");
  await refused({ ...options, env: { EXEC_SANDBOX_ASSET_URL: "file:///etc" } }, "file:///etc");
  await refused({ ...options, env: { ...options.env, EXEC_SANDBOX_ASSET_VERSION: "../.." } }, "../..");
  assert.deepEqual(asked, []);
});

test("an abort rejects with its reason and keeps nothing half", async (t) => {
  const { options } = await release(t);
  const stop = new AbortController(), reason = new Error("enough");
  const running = downloadAssets({ ...options, signal: stop.signal, onProgress: () => stop.abort(reason) });
  await assert.rejects(running, (error) => error === reason);
  assert.ok(!existsSync(options.imagesDir));
  assert.deepEqual(readdirSync(path.join(options.cacheDir, "downloads")).filter((name) => name.endsWith(".part")), []);
});

test("a scheduler that finds no images downloads them, unless it must not", async (t) => {
  const { options, files } = await release(t);
  const { imagesDir } = options, quiet = { debug() {}, info() {}, warning() {}, error() {} };
  const open = (config: SchedulerConfig) => Scheduler.open({ imagesDir, ...config }, { log: quiet });
  const before = { ...process.env };
  t.after(() => {
    for (const name of ["EXEC_SANDBOX_ASSET_URL", "EXEC_SANDBOX_ASSET_VERSION", "EXEC_SANDBOX_CACHE_DIR", "EXEC_SANDBOX_OFFLINE"]) {
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
    }
  });
  await assert.rejects(open({}), AssetError);
  Object.assign(process.env, options.env, { EXEC_SANDBOX_ASSET_VERSION: "0.1.0", EXEC_SANDBOX_CACHE_DIR: options.cacheDir });
  await assert.rejects(open({ autoDownloadAssets: false }), AssetError);
  process.env["EXEC_SANDBOX_OFFLINE"] = "1";
  await assert.rejects(open({}), AssetError);
  delete process.env["EXEC_SANDBOX_OFFLINE"];
  await using _scheduler = await open({});
  assert.equal((await verifyAssets(imagesDir)).length, Object.keys(files).length);
});

noLeftovers();
