/** S3 get: reads the object `text` in another process, whose clock may be some hours wrong. Arguments: endpoint, bucket, hours. */
import process from "node:process";
import { S3Error } from "../../../src/cache/s3_error.ts";

const [endpoint = "", bucket = "", hours = "0"] = process.argv.slice(2);
const offsetMs = Number(hours) * 3_600_000, RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...args: unknown[]) {
    super(...(args.length === 0 ? [RealDate.now() + offsetMs] : args) as [number]);
  }
  static override now() {
    return RealDate.now() + offsetMs;
  }
} as DateConstructor;

const { S3Objects } = await import("../../../src/cache/s3.ts");
try {
  using objects = new S3Objects({ bucket, region: "us-east-1", endpoint });
  process.stdout.write(`got ${await objects.getText("text", 100, new AbortController().signal)}\n`);
} catch (error) {
  process.stdout.write(`failed: ${error instanceof S3Error ? error.reason : error}\n`);
}
process.exit(0);
