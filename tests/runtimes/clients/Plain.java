import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** An app on Java's own HttpClient. It says nothing of whom to trust. Java 11 or later. */
public class Plain {
    static final String ASKED =
            "{\"model\":\"gpt-4o-mini\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    // What the API says stays JSON, so no string is decoded here.
    static final Pattern CONTENT = Pattern.compile("\"content\": *(\"(?:[^\"\\\\]|\\\\.)*\")");

    public static void main(String[] arguments) {
        boolean ok = false;
        String status = "null", text = "null", error = "null";
        try {
            var request = HttpRequest.newBuilder()
                    .uri(URI.create("https://api.openai.com/v1/chat/completions"))
                    .header("Content-Type", "application/json")
                    .header("Authorization", "Bearer " + System.getenv("OPENAI_API_KEY"))
                    .timeout(Duration.ofSeconds(20))
                    .POST(HttpRequest.BodyPublishers.ofString(ASKED))
                    .build();
            var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
            status = String.valueOf(answer.statusCode());
            Matcher found = CONTENT.matcher(answer.body());
            ok = answer.statusCode() == 200 && found.find();
            text = ok ? found.group(1) : text;
            error = ok ? error : quoted(answer.body());
        } catch (Exception failure) {
            error = quoted(failure.toString());
        }
        System.out.printf("{\"ok\": %s, \"status\": %s, \"text\": %s, \"error\": %s}%n",
                ok, status, text, error);
        System.exit(ok ? 0 : 1);
    }

    static String quoted(String said) {
        return '"' + said.replaceAll("[\"\\\\]", "\\\\$0").replaceAll("\\s+", " ") + '"';
    }
}
