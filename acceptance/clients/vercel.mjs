// Vercel's AI SDK against the server at argv[2]: texts, streams, objects and tools. Prints what it got, in JSON.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "longspan", baseURL: process.argv[2] + "/v1", apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const plain = { model: provider("smollm2-135m"), maxRetries: 0, maxOutputTokens: 20, temperature: 0,
  prompt: "What is the capital of France? Answer with one word." };
const shaped = { model: provider("smollm2-135m"), maxRetries: 0, maxOutputTokens: 700, seed: 1,
  prompt: "Paris is the capital of France, with two million inhabitants." };
const schema = z.object({ name: z.string().max(30), size: z.enum(["small", "large"]) });
const asked = [];
const weather = tool({
  description: "Tells the weather in a city.",
  inputSchema: z.object({ city: z.string().max(30) }),
  execute: async ({ city }) => { asked.push(city); return { weather: `sunny in ${city}` }; },
});

const whole = await generateText(plain);
const stream = streamText(plain);
let streamed = "";
for await (const delta of stream.textStream) streamed += delta;
assert.equal(streamed, whole.text);
assert.deepEqual((await stream.usage).totalTokens, whole.usage.totalTokens);
assert.equal(await stream.finishReason, whole.finishReason);

const { object } = await generateObject({ ...shaped, schema });
const { output } = await generateText({ ...shaped, output: Output.object({ schema }) });
const parts = streamText({ ...shaped, output: Output.object({ schema }) });
let partial = null;
for await (const each of parts.partialOutputStream) partial = each;
assert.deepEqual(schema.parse(partial), await parts.output);

// A tool that is called, and told of in the next step; the first step must call it, the second may not.
const stepped = {
  ...shaped, tools: { weather }, stopWhen: isStepCount(2), providerOptions: { longspan: { parallel_tool_calls: false } },
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
};
const called = await generateText(stepped);
assert.equal(called.steps.length, 2);
assert.equal(called.steps[0].finishReason, "tool-calls");
assert.equal(called.steps[0].toolResults.length, called.steps[0].toolCalls.length);
const named = streamText({ ...shaped, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } });
const kinds = new Set();
for await (const part of named.fullStream) {
  assert.notEqual(part.type, "error", String(part.error));
  kinds.add(part.type);
}
assert.ok(kinds.has("tool-input-delta") && kinds.has("tool-call") && kinds.has("tool-result"), [...kinds].join(" "));

await assert.rejects(generateText({ ...plain, temperature: 7 }),
  (error) => error instanceof APICallError && error.statusCode === 400 && /temperature/.test(error.message));
const { text } = await generateText({ ...plain, model: provider.completionModel("smollm2-135m"), maxOutputTokens: 5 });

console.log(JSON.stringify({ whole: whole.text, object, output, partial, asked, completion: text }));
