// The official openai package for JavaScript, against the server at argv[2]; argv[3] names what to try.
// It ends with status 0 if all was as it should be.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const model = "smollm2-135m";
const messages = [{ role: "user", content: "What is the capital of France? Answer with one word." }];

const tries = {
  async lists_models() {
    const { data } = await client.models.list();
    assert.deepEqual(data.map((each) => each.id), [model]);
  },

  async streams_what_a_whole_answer_says() {
    const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 20 });
    const stream = await client.chat.completions.create({
      model, messages, temperature: 0, max_tokens: 20, stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null, reason = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      reason = chunk.choices[0]?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.match(text, /Paris/);
    assert.equal(reason, whole.choices[0].finish_reason);
    assert.deepEqual({ ...usage, prompt_tokens_details: null }, { ...whole.usage, prompt_tokens_details: null });
  },

  async its_stream_helper_understands() {
    const runner = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 20 });
    let text = "";
    runner.on("content", (delta) => { text += delta; });
    const final = await runner.finalChatCompletion();
    assert.equal(text, final.choices[0].message.content);
  },

  async reads_log_probabilities() {
    const answer = await client.chat.completions.create({
      model, messages, temperature: 0, max_tokens: 3, logprobs: true, top_logprobs: 2,
    });
    const { content } = answer.choices[0].logprobs;
    for (const position of content) {
      assert.equal(position.top_logprobs.length, 2);
      assert.equal(position.logprob, position.top_logprobs[0].logprob);
      assert.equal(Buffer.from(position.bytes).toString(), position.token);
    }
  },

  async gets_errors_of_their_kind() {
    await assert.rejects(
      client.chat.completions.create({ model, messages, temperature: 7 }),
      (error) => error instanceof OpenAI.BadRequestError && error.status === 400 && error.param === "temperature",
    );
    await assert.rejects(
      client.chat.completions.create({ model: "another", messages }),
      (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
    );
    await assert.rejects(
      client.completions.create({ model, prompt: Array(9000).fill(5), max_tokens: 5 }),
      (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
    );
  },

  async goes_away() {
    const endless = { model, prompt: "Once", max_tokens: 4000, ignore_eos: true };
    const stream = await client.completions.create({ ...endless, stream: true });
    let count = 0;
    for await (const _ of stream) if (++count === 3) stream.controller.abort();
    assert.ok(count >= 3 && count < endless.max_tokens); // what had been read with the third still comes
    const controller = new AbortController();
    const asked = client.completions.create(endless, { signal: controller.signal });
    setTimeout(() => controller.abort(), 100);
    await assert.rejects(asked, OpenAI.APIUserAbortError);
  },
};

await tries[process.argv[3]]();
