import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;

/** An app on OkHttp, as the official Java SDK is. It says nothing of whom to trust. */
public class OkHttp {
    static final String ASKED =
            "{\"model\":\"gpt-4o-mini\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    // What the API says stays JSON, so no string is decoded here.
    static final Pattern CONTENT = Pattern.compile("\"content\": *(\"(?:[^\"\\\\]|\\\\.)*\")");

    public static void main(String[] arguments) {
        boolean ok = false;
        String status = "null", text = "null", error = "null";
        var client = new OkHttpClient.Builder().callTimeout(20, TimeUnit.SECONDS).build();
        var request = new Request.Builder()
                .url("https://api.openai.com/v1/chat/completions")
                .header("Authorization", "Bearer " + System.getenv("OPENAI_API_KEY"))
                .post(RequestBody.create(MediaType.get("application/json"), ASKED))
                .build();
        try (var answer = client.newCall(request).execute()) {
            status = String.valueOf(answer.code());
            String body = answer.body().string();
            Matcher found = CONTENT.matcher(body);
            ok = answer.code() == 200 && found.find();
            text = ok ? found.group(1) : text;
            error = ok ? error : quoted(body);
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
