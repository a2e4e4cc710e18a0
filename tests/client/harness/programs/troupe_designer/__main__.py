from standin.policy import main

main("designer")
