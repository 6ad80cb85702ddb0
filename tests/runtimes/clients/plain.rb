# An app on Ruby's own Net::HTTP. It says nothing of whom to trust.
require "json"
require "net/http"

uri = URI("https://api.openai.com/v1/chat/completions")
request = Net::HTTP::Post.new(uri, "Content-Type" => "application/json",
                                   "Authorization" => "Bearer #{ENV['OPENAI_API_KEY']}")
request.body = JSON.dump(model: "gpt-4o-mini", messages: [{ role: "user", content: "hi" }])
outcome = { ok: false, status: nil, text: nil, error: nil }
begin
  options = { use_ssl: true, open_timeout: 20, read_timeout: 20, max_retries: 0 }
  answer = Net::HTTP.start(uri.host, uri.port, **options) { |http| http.request(request) }
  outcome[:status] = answer.code.to_i
  if outcome[:status] == 200
    outcome[:text] = JSON.parse(answer.body).dig("choices", 0, "message", "content")
    outcome[:ok] = true
  else
    outcome[:error] = answer.body
  end
rescue StandardError => error
  outcome[:error] = "#{error.class}: #{error.message}"
end
puts JSON.generate(outcome)
exit outcome[:ok]
